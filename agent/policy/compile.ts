/**
 * A workload's policies as one list of terms, of which the first that fits decides. Everything about identities is worked out
 * here, once for each identity of the node: identities of which all terms say the same are one class, and a term has a bit for
 * each class. Class 0 is that of callers without identity. What does not fit the kernel's tables is an error, never a rule less.
 */
import { Action, type Authorization, type Match } from '../../proto/generated/istio/security/authorization.js';
import { UnderpassError } from '../../common/errors.js';
import { fitsIdentity, isEmptyMatch, type Identity } from './authorization.js';
import { ALL_PORTS, blockOf, commonBlocks, commonPorts, hasAddress, isAllPorts, portsOf, type Block, type PortRange } from './blocks.js';

/** As large as the kernel's tables (bpf/policy.h). */
export const MAX_TERMS = 64;
export const MAX_PORT_RANGES = 128;
export const MAX_BLOCKS = 128;
export const MAX_CLASSES = 64;

export interface Term {
  deny: boolean;
  /** The policy that it comes from, `namespace/name`; the kernel's tables have no place for it. */
  policy: string;
  /** Bit by class. */
  classes: bigint;
  ports: readonly PortRange[];
  /** undefined: from anywhere. */
  sources: readonly Block[] | undefined;
  notSources: readonly Block[];
  destinations: readonly Block[] | undefined;
  notDestinations: readonly Block[];
}

export interface CompiledPolicy {
  allowByDefault: boolean;
  /** Those that deny first. */
  terms: readonly Term[];
  /** By the keys that the identities were given under. */
  classes: ReadonlyMap<string, number>;
}

export interface Query {
  /** 0: without identity. */
  class: number;
  /** 16 bytes, IPv4 in mapped form. */
  source: Buffer;
  destination: Buffer;
  port: number;
}

/** Before classes: which of the distinct identities it holds for; the first stands for callers without one. */
interface Draft extends Omit<Term, 'classes'> {
  fits: readonly boolean[];
}

/**
 * @param identities of callers that may come, by any key
 * @throws UnderpassError `UNDERPASS_POLICY_TOO_LARGE`
 */
export function compilePolicy(policies: readonly Authorization[], identities: ReadonlyMap<string, Identity>): CompiledPolicy {
  const distinct = new Map<string, number>();
  const callers: (Identity | undefined)[] = [undefined];
  const numbers = new Map<string, number>();
  for (const [key, identity] of identities) {
    const name = JSON.stringify([identity.trustDomain, identity.namespace, identity.serviceAccount]);
    const number = distinct.get(name) ?? callers.push(identity) - 1;
    distinct.set(name, number);
    numbers.set(key, number);
  }
  const enforced = policies.filter(({ dry_run }) => !dry_run);
  const drafts = [true, false].flatMap((deny) =>
    enforced.filter(({ action }) => (action === Action.DENY) === deny).flatMap(({ groups, namespace, name }) => groups.flatMap(({ rules }) => termsOf(rules.map(({ matches }) => matches), { deny, policy: `${namespace}/${name}` }, callers))),
  );
  bounded('terms', drafts.length, MAX_TERMS);
  bounded('ranges of ports', drafts.reduce((sum, { ports }) => sum + (isAllPorts(ports) ? 0 : ports.length), 0), MAX_PORT_RANGES);
  bounded('blocks of addresses', drafts.reduce((sum, draft) => sum + blocksOf(draft).length, 0), MAX_BLOCKS);
  const { classOf, members } = classesOf(drafts, callers.length);
  const terms = drafts.map(({ fits, ...term }): Term => ({ ...term, classes: members.reduce((mask, number, index) => (fits[number] ? mask | (1n << BigInt(index)) : mask), 0n) }));
  return {
    allowByDefault: !enforced.some(({ action }) => action === Action.ALLOW),
    terms,
    classes: new Map([...numbers].map(([key, number]) => [key, classOf[number] as number])),
  };
}

/** What the kernel answers to the same question. */
export function allows(compiled: Pick<CompiledPolicy, 'terms' | 'allowByDefault'>, query: Query): boolean {
  const found = compiled.terms[decidingTerm(compiled.terms, query)];
  return found ? !found.deny : compiled.allowByDefault;
}

/** @returns its index; -1: none fits, and the default decides */
export function decidingTerm(terms: readonly Omit<Term, 'policy'>[], { class: number, source, destination, port }: Query): number {
  return terms.findIndex(
    (term) =>
      (term.classes >> BigInt(number)) & 1n && term.ports.some(([first, last]) => port >= first && port <= last) &&
      (!term.sources || hasAddress(term.sources, source)) && !hasAddress(term.notSources, source) &&
      (!term.destinations || hasAddress(term.destinations, destination)) && !hasAddress(term.notDestinations, destination),
  );
}

export function blocksOf({ sources = [], notSources, destinations = [], notDestinations }: Pick<Term, 'sources' | 'notSources' | 'destinations' | 'notDestinations'>): Block[] {
  return [...sources, ...notSources, ...destinations, ...notDestinations];
}

/** One term for each way in which one match of every clause can hold. */
function termsOf(clauses: readonly (readonly Match[])[], of: Pick<Term, 'deny' | 'policy'>, callers: readonly (Identity | undefined)[]): Draft[] {
  const everything: Draft = { ...of, fits: callers.map(() => true), ports: ALL_PORTS, sources: undefined, notSources: [], destinations: undefined, notDestinations: [] };
  let terms = [everything];
  for (const matches of clauses) {
    // A clause of no matches asks nothing.
    if (matches.length === 0) continue;
    const alternatives = matches.filter((match) => of.deny || !isEmptyMatch(match)).map((match) => draftOf(match, of, callers));
    terms = terms.flatMap((term) => alternatives.map((alternative) => both(term, alternative)).filter(isPossible));
    bounded('terms', terms.length, MAX_TERMS);
  }
  return terms;
}

function draftOf(match: Match, of: Pick<Term, 'deny' | 'policy'>, callers: readonly (Identity | undefined)[]): Draft {
  const blocks = (addresses: Match['source_ips']): Block[] => addresses.map(({ address, length }) => blockOf(address, length));
  return {
    ...of,
    fits: callers.map((identity) => fitsIdentity(match, identity)),
    ports: portsOf(match.destination_ports, match.not_destination_ports),
    sources: match.source_ips.length > 0 ? blocks(match.source_ips) : undefined,
    notSources: blocks(match.not_source_ips),
    destinations: match.destination_ips.length > 0 ? blocks(match.destination_ips) : undefined,
    notDestinations: blocks(match.not_destination_ips),
  };
}

function both(a: Draft, b: Draft): Draft {
  const common = (left: readonly Block[] | undefined, right: readonly Block[] | undefined): readonly Block[] | undefined => (left && right ? commonBlocks(left, right) : left ?? right);
  return {
    deny: a.deny,
    policy: a.policy,
    fits: a.fits.map((fits, i) => fits && (b.fits[i] as boolean)),
    ports: commonPorts(a.ports, b.ports),
    sources: common(a.sources, b.sources),
    notSources: [...a.notSources, ...b.notSources],
    destinations: common(a.destinations, b.destinations),
    notDestinations: [...a.notDestinations, ...b.notDestinations],
  };
}

function isPossible({ fits, ports, sources, destinations }: Draft): boolean {
  return fits.includes(true) && ports.length > 0 && sources?.length !== 0 && destinations?.length !== 0;
}

/** Numbers of classes by identity, and one identity of each class. */
function classesOf(drafts: readonly Draft[], count: number): { classOf: number[]; members: number[] } {
  const known = new Map<string, number>();
  const members: number[] = [];
  const classOf = Array.from({ length: count }, (_, number) => {
    // Those without identity are by themselves: a class is also how the kernel says that there is none.
    const column = number === 0 ? '' : drafts.map(({ fits }) => (fits[number] ? 1 : 0)).join('') || '-';
    const found = known.get(column) ?? members.push(number) - 1;
    known.set(column, found);
    return found;
  });
  bounded('classes of callers', members.length, MAX_CLASSES);
  return { classOf, members };
}

function bounded(what: string, count: number, max: number): void {
  if (count > max) throw new UnderpassError('UNDERPASS_POLICY_TOO_LARGE', `its policies come to ${count} ${what}, the kernel's tables hold ${max}`);
}
