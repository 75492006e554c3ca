/** Rate limits as the service of envoyproxy/ratelimit keeps them: its configuration file, fixed windows, counted in memory. */
import { parse } from 'yaml';

const UNITS: Readonly<Record<string, number>> = { second: 1, minute: 60, hour: 3_600, day: 86_400 };

export interface LimitConfig {
  key: string;
  value?: string;
  rate_limit?: { unit: string; requests_per_unit: number; unlimited?: boolean };
  descriptors?: LimitConfig[];
}

export interface DomainConfig {
  domain: string;
  descriptors: LimitConfig[];
}

export interface Entry {
  key: string;
  value: string;
}

export interface Verdict {
  over: boolean;
  /** Absent when no limit is set for the descriptor. */
  limit?: { unit: string; requestsPerUnit: number };
  remaining: number;
  resetSeconds: number;
}

/** @throws Error when a domain or a limit is not as the service reads them */
export function parseDomain(text: string): DomainConfig {
  const { domain, descriptors = [] } = (parse(text) ?? {}) as Partial<DomainConfig>;
  if (typeof domain !== 'string') throw new Error('reading rate limits: domain: expected a name');
  const check = (list: readonly LimitConfig[], path: string): void =>
    list.forEach(({ key, rate_limit: limit, descriptors: nested = [] }, index) => {
      const at = `${path}[${index}]`;
      if (typeof key !== 'string') throw new Error(`reading rate limits: ${at}.key: expected a name`);
      if (limit && !limit.unlimited && UNITS[limit.unit?.toLowerCase()] === undefined) throw new Error(`reading rate limits: ${at}.rate_limit.unit: found ${limit.unit}, expected ${Object.keys(UNITS).join(', ')}`);
      check(nested, `${at}.descriptors`);
    });
  check(descriptors, 'descriptors');
  return { domain, descriptors };
}

/** The limit for a descriptor: each entry by key and value, or by key alone; the last entry's limit counts. */
export function limitFor(config: DomainConfig, entries: readonly Entry[]): LimitConfig['rate_limit'] {
  let level: readonly LimitConfig[] = config.descriptors;
  let found: LimitConfig | undefined;
  for (const { key, value } of entries) {
    found = level.find((candidate) => candidate.key === key && candidate.value === value) ?? level.find((candidate) => candidate.key === key && candidate.value === undefined);
    if (!found) return undefined;
    level = found.descriptors ?? [];
  }
  return found?.rate_limit;
}

export class RateLimits {
  readonly #counts = new Map<string, { window: number; hits: number }>();

  constructor(readonly domains: readonly DomainConfig[], readonly now: () => number = () => Date.now() / 1000) {}

  /** Counts these hits. */
  hit(domain: string, entries: readonly Entry[], hits = 1): Verdict {
    const config = this.domains.find((candidate) => candidate.domain === domain);
    const limit = config && limitFor(config, entries);
    if (!limit || limit.unlimited) return { over: false, remaining: Number.MAX_SAFE_INTEGER, resetSeconds: 0 };
    const length = UNITS[limit.unit.toLowerCase()] as number;
    const window = Math.floor(this.now() / length);
    const name = JSON.stringify([domain, entries.map(({ key, value }) => [key, value])]);
    const known = this.#counts.get(name);
    const count = known?.window === window ? known : { window, hits: 0 };
    count.hits += hits;
    this.#counts.set(name, count);
    return {
      over: count.hits > limit.requests_per_unit,
      limit: { unit: limit.unit.toUpperCase(), requestsPerUnit: limit.requests_per_unit },
      remaining: Math.max(0, limit.requests_per_unit - count.hits),
      resetSeconds: Math.ceil((window + 1) * length - this.now()),
    };
  }
}
