/** How commands print: one option, one way from a value to text, colours where a person reads. */
import { styleText } from 'node:util';
import { Option } from 'commander';
import { stringify } from 'yaml';
import { UnderpassError } from '../common/errors.js';

export const FORMATS = ['table', 'json', 'yaml'] as const;
export type Format = (typeof FORMATS)[number];

/** `-o, --output table|json|yaml`; its value is `output` of the command's options. */
export function outputOption(description = 'table for people; json and yaml have all that is known, for scripts'): Option {
  return new Option('-o, --output <format>', description).choices(FORMATS).default('table');
}

/** @param table what a person reads, made when it is asked for; ends in a newline */
export function print(format: Format, value: unknown, table: () => string): void {
  process.stdout.write(format === 'table' ? table() : format === 'json' ? `${JSON.stringify(value, null, 2)}\n` : stringify(value, { lineWidth: 0, aliasDuplicateObjects: false }));
}

/** One of many values that come one by one. @param line of JSON */
export function printed(format: 'json' | 'yaml', line: string): string {
  return format === 'json' ? `${line}\n` : `---\n${stringify(JSON.parse(line), { lineWidth: 0, aliasDuplicateObjects: false })}`;
}

/** @throws UnderpassError `UNDERPASS_AGENT_REQUEST` when it is no JSON */
export function parseAnswer<T>(text: string, what: string): T {
  try {
    return JSON.parse(text) as T;
  } catch (cause) {
    throw new UnderpassError('UNDERPASS_AGENT_REQUEST', `reading ${what}: expected JSON, found ${JSON.stringify(text.slice(0, 80))}`, { cause });
  }
}

const STYLES = { good: 'green', warning: 'yellow', bad: 'red', name: 'cyan', faint: 'dim', strong: 'bold' } as const;
export type Style = keyof typeof STYLES;

/** https://no-color.org: any value but the empty one turns colours off. */
export function hasColour(stream: { isTTY?: boolean } = process.stdout, environment: NodeJS.ProcessEnv = process.env): boolean {
  return stream.isTTY === true && !environment['NO_COLOR'] && environment['TERM'] !== 'dumb';
}

/** The text in colour on a terminal, unchanged elsewhere. */
export function paint(style: Style, text: string, stream: { isTTY?: boolean } = process.stdout): string {
  return hasColour(stream) && text !== '' ? styleText(STYLES[style], text) : text;
}
