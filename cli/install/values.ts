/** Values of an installation out of files, as Helm reads them, and of `--set`. */
import { readFileSync } from 'node:fs';
import { parse, type DocumentOptions, type ParseOptions, type SchemaOptions } from 'yaml';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import { DEFAULTS, isMapping, problemOf, settings, SETTINGS, type Setting, type SettingPath, type Values } from './settings.js';

/** YAML 1.1, as Go's library has it: `yes` and `on` are true, `1:30` and dates are texts. */
const AS_HELM: ParseOptions & DocumentOptions & SchemaOptions = {
  version: '1.1',
  merge: true,
  customTags: (tags) => tags.filter((tag) => typeof tag === 'string' || (tag.tag !== 'tag:yaml.org,2002:timestamp' && !('format' in tag && tag.format === 'TIME'))),
};

const isSetting = (path: string): path is SettingPath => Object.hasOwn(SETTINGS, path);
const isGroup = (path: string): boolean => settings.some(([known]) => known.startsWith(`${path}.`));

const wrong = (place: string, message: string): UnderpassError => new UnderpassError('UNDERPASS_BAD_VALUE', `${place}: ${message}`, { hint: 'docs/install.md lists the values' });

/**
 * @param files later ones override; @param sets `path=value` each, which override files
 * @throws UnderpassError `UNDERPASS_BAD_VALUE` naming file, or option, and path
 */
export function readValues(files: readonly string[], sets: readonly string[]): Values {
  const values: Record<string, unknown> = structuredClone(DEFAULTS);
  for (const file of files) {
    let written: unknown;
    try {
      written = parse(readFileSync(file, 'utf8'), AS_HELM) ?? {};
    } catch (error) {
      throw wrong(file, `reading values: ${errorMessage(error)}`);
    }
    if (!isMapping(written)) throw wrong(file, 'found no mapping, expected values by name');
    take(written, '', file, values);
  }
  for (const word of sets) setOne(word, values);
  const all = values as Values;
  for (const [path, setting] of settings) {
    const problem = problemOf(setting, all[path]);
    if (problem !== undefined) throw wrong(path, problem);
  }
  if (all['gateways.eastWest.enabled'] === true && all['gateways.eastWest.network'] === '') throw wrong('gateways.eastWest.network', 'found nothing, expected the network whose gateway it is');
  return all;
}

function take(written: Record<string, unknown>, above: string, place: string, values: Record<string, unknown>): void {
  for (const [key, found] of Object.entries(written)) {
    const path = above === '' ? key : `${above}.${key}`;
    if (isSetting(path)) {
      const problem = problemOf(SETTINGS[path], found);
      if (problem !== undefined) throw wrong(`${place}: ${path}`, problem);
      values[path] = merged(SETTINGS[path], values[path], found);
    } else if (isGroup(path)) {
      if (!isMapping(found)) throw wrong(`${place}: ${path}`, `found ${JSON.stringify(found)}, expected a mapping`);
      take(found, path, place, values);
    } else if (path !== 'global') throw wrong(`${place}: ${path}`, `is no value; expected ${near(above)}`);
  }
}

/** Mappings are merged, and null takes a key away, as with Helm; everything else is replaced. */
function merged(setting: Setting, before: unknown, found: unknown): unknown {
  return setting.type === 'object' ? mergeMappings(before as Record<string, unknown>, found as Record<string, unknown>) : found;
}

function mergeMappings(before: Readonly<Record<string, unknown>>, found: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const result: Record<string, unknown> = { ...before };
  for (const [key, item] of Object.entries(found)) {
    const known = result[key];
    if (item === null) delete result[key];
    else result[key] = isMapping(known) && isMapping(item) ? mergeMappings(known, item) : item;
  }
  return result;
}

/** `a.b=text`; lists and mappings are JSON; what is behind the path of a mapping goes into it, as a text unless it is typed. */
function setOne(word: string, values: Record<string, unknown>): void {
  const place = `--set ${word}`;
  const equals = word.indexOf('=');
  if (equals <= 0) throw wrong(place, 'expected path=value');
  const path = word.slice(0, equals);
  const found = word.slice(equals + 1);
  const owner = settings.find(([known, { type }]) => path === known || (type === 'object' && path.startsWith(`${known}.`)));
  if (!owner) throw wrong(place, `${path} is no value; expected ${near(path.split('.').slice(0, -1).join('.'))}`);
  const [known, setting] = owner;
  if (path !== known) {
    const inner = path.slice(known.length + 1).split('.').reduceRight<unknown>((value, key) => ({ [key]: value }), setting.type === 'object' && setting.isTyped ? looksLike(found) : found);
    values[known] = merged(setting, values[known], inner);
    return;
  }
  const read = setting.type === 'string' ? found : readJson(found, place, setting);
  const problem = problemOf(setting, read);
  if (problem !== undefined) throw wrong(place, problem);
  values[known] = merged(setting, values[known], read);
}

function readJson(found: string, place: string, setting: Setting): unknown {
  try {
    return JSON.parse(found) as unknown;
  } catch {
    throw wrong(place, problemOf(setting, found) ?? 'expected JSON');
  }
}

/** As Helm's `--set` has it for true, false, null and whole numbers; lists and mappings are JSON here too. */
function looksLike(found: string): unknown {
  if (!/^(?:true|false|null|-?(?:0|[1-9]\d*)|[[{].*)$/s.test(found)) return found;
  try {
    return JSON.parse(found) as unknown;
  } catch {
    return found;
  }
}

function near(group: string): string {
  const names = new Set(settings.flatMap(([path]) => (group === '' || path.startsWith(`${group}.`) ? [path.slice(group === '' ? 0 : group.length + 1).split('.')[0]!] : [])));
  return names.size > 0 ? `one of ${[...names].join(', ')}` : near('');
}
