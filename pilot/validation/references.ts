/** What can only be judged with the other objects at hand: does a VirtualService lead anywhere? */
import type { Problem } from '../../common/kube/schema.js';
import { nearest } from '../../common/kube/schema.js';
import type { DestinationRule, KubeObject, Service, VirtualService } from '../../common/kube/types.js';
import { errorAt, type LoadedObject, type ValidationError } from '../../common/kube/yaml.js';
import { checkEnvoyFilter } from '../envoy-filter/compile.js';
import { checkWasmPlugin } from '../wasm/wasm-plugins.js';
import { hostMatches, resolveHost, serviceHost } from '../model/hosts.js';

interface Subset {
  pattern: string;
  names: Set<string>;
}

/** The hosts and subsets that a set of objects has. */
export class References {
  readonly #subsets: Subset[] = [];
  readonly #hosts = new Map<string, Set<number>>();
  readonly #hostOwners = new Map<string, LoadedObject>();

  constructor(objects: Iterable<LoadedObject>, readonly clusterDomain: string) {
    for (const loaded of objects) {
      const { object } = loaded;
      const namespace = object.metadata.namespace ?? 'default';
      if (object.kind === 'Service') {
        const ports = (object as Service).spec.ports ?? [];
        this.#hosts.set(serviceHost(object.metadata.name, namespace, clusterDomain), new Set(ports.map(({ port }) => port)));
      } else if (object.kind === 'DestinationRule') {
        const { host, subsets = [] } = (object as DestinationRule).spec;
        this.#subsets.push({ pattern: resolveHost(host, namespace, clusterDomain), names: new Set(subsets.map(({ name }) => name)) });
      } else if (object.kind === 'VirtualService') {
        const { hosts = [], gateways } = (object as VirtualService).spec;
        if (gateways?.length && !gateways.includes('mesh')) continue;
        for (const host of hosts) {
          const name = resolveHost(host, namespace, clusterDomain);
          if (!this.#hostOwners.has(name)) this.#hostOwners.set(name, loaded);
        }
      }
    }
  }

  /** Everything that is wrong with one VirtualService in this company. */
  check(loaded: LoadedObject): ValidationError[] {
    const object = loaded.object as KubeObject;
    if (object.kind === 'WasmPlugin') return checkWasmPlugin(object).map((problem) => errorAt(loaded, problem));
    if (object.kind === 'EnvoyFilter') return checkEnvoyFilter(object).map((problem) => errorAt(loaded, problem));
    if (object.kind !== 'VirtualService') return [];
    const problems: Problem[] = [];
    const { spec } = object as VirtualService;
    const namespace = object.metadata.namespace ?? 'default';
    for (const protocol of ['http', 'tcp'] as const) {
      spec[protocol]?.forEach((rule, r) => {
        rule.route?.forEach(({ destination }, d) => {
          const path = ['spec', protocol, r, 'route', d, 'destination'];
          const host = resolveHost(destination.host, namespace, this.clusterDomain);
          const ports = this.#hosts.get(host);
          if (!ports) {
            const near = nearest(host, this.#hosts.keys());
            const hint = near ? `; did you mean ${near}?` : '';
            problems.push({ path: [...path, 'host'], severity: 'warning', message: `found "${destination.host}", but no Service ${host} is known: requests would be answered with 503${hint}` });
          } else if (destination.port && !ports.has(destination.port.number)) {
            problems.push({ path: [...path, 'port', 'number'], severity: 'error', message: `found ${destination.port.number}, expected a port of ${host}: ${[...ports].join(', ') || 'it has none'}` });
          }
          if (destination.subset) this.#checkSubset(host, destination.subset, [...path, 'subset'], problems);
        });
      });
    }
    for (const [index, written] of (spec.hosts ?? []).entries()) {
      const owner = this.#hostOwners.get(resolveHost(written, namespace, this.clusterDomain));
      if (owner && owner.key !== loaded.key && !(spec.gateways?.length && !spec.gateways.includes('mesh'))) {
        const { metadata } = owner.object;
        problems.push({ path: ['spec', 'hosts', index], severity: 'warning', message: `found "${written}", which VirtualService ${metadata.namespace}/${metadata.name} routes already: for workloads only the oldest counts` });
      }
    }
    return problems.map((problem) => errorAt(loaded, problem));
  }

  #checkSubset(host: string, subset: string, path: (string | number)[], problems: Problem[]): void {
    const rules = this.#subsets.filter(({ pattern }) => hostMatches(pattern, host));
    if (rules.some(({ names }) => names.has(subset))) return;
    const names = rules.flatMap((rule) => [...rule.names]);
    const near = nearest(subset, names);
    const expected = rules.length === 0 ? `no DestinationRule for ${host} is known that would define it` : `expected a subset of ${host}: ${names.join(', ') || 'its DestinationRule has none'}${near ? ` (did you mean ${near}?)` : ''}`;
    problems.push({ path, severity: 'error', message: `found "${subset}", ${expected}` });
  }
}
