/** Incremental xDS: only what changed, and the names of what is gone. */
import type { DeltaDiscoveryRequest } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import type { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { Generator } from '../generate/generator.js';
import type { Resource } from '../generate/resource.js';
import type { Proxy } from '../model/proxy.js';
import { Connection, type Delta, type Steps } from './connection.js';
import { encodeDelta } from './encode.js';
import { Watch } from './watch.js';

export class DeltaConnection extends Connection<DeltaDiscoveryRequest> {
  readonly variant = 'delta';

  protected override nodeOf(request: DeltaDiscoveryRequest): Node | undefined {
    return request.node;
  }

  protected override *handle(request: DeltaDiscoveryRequest, proxy: Proxy): Steps {
    const generator = this.context.generators.get(request.type_url);
    // As istiod: a type that is not served here gets no answer.
    if (!generator) return;
    const { resource_names_subscribe: added, resource_names_unsubscribe: dropped } = request;
    yield* this.makeAhead(generator, proxy, added);
    let watch = this.watches.get(request.type_url);
    if (!watch) {
      this.watches.set(request.type_url, (watch = new Watch(request.type_url, this.context.maps)));
      watch.wildcard = added.includes('*') || (generator.wildcard && added.length === 0);
      watch.subscribe(added.filter((name) => name !== '*'), this.context.maxNames);
      const known = Object.entries(request.initial_resource_versions);
      watch.sent.setAll({ items: known, nameOf: ([name]) => name, versionOf: ([, version]) => version });
      yield;
      const whole = this.#shared(watch, generator, proxy) ?? this.everything(watch, generator, proxy);
      yield;
      // Always answered, if with nothing: the client waits for this to know that it is up to date.
      this.respond(watch, generator, proxy, whole);
      return;
    }
    if (request.response_nonce) this.acknowledge(watch, request.response_nonce, request.error_detail?.message ?? undefined);
    for (const name of dropped) {
      if (name === '*') watch.wildcard = false;
      watch.names.delete(name);
      if (!watch.wildcard) watch.sent.delete(name);
    }
    // Of what came by the wildcard alone nothing is watched any more.
    if (dropped.includes('*')) for (const name of [...watch.sent.keys()]) if (!watch.names.has(name)) watch.sent.delete(name);
    if (added.length === 0) return;
    // Whoever subscribes to a name gets it, even if it was sent before: the client has forgotten it.
    const wanted: Resource[] = [];
    const removed: string[] = [];
    watch.wildcard ||= added.includes('*');
    const named = added.filter((name) => name !== '*');
    watch.subscribe(named, this.context.maxNames);
    for (const name of named) {
      const resource = generator.one(proxy, name);
      if (resource) wanted.push(resource);
      else removed.push(name);
    }
    if (added.includes('*')) {
      const all = this.everything(watch, generator, proxy);
      const known = new Set(wanted.map(({ name }) => name));
      wanted.push(...all.changed.filter(({ name }) => !known.has(name)));
      removed.push(...all.removed);
    }
    this.respond(watch, generator, proxy, { changed: wanted, removed });
  }

  /** For a client that holds nothing yet, and asked for what others ask for. */
  #shared(watch: Watch, generator: Generator, proxy: Proxy): Delta | undefined {
    if (watch.sent.size > 0 || (watch.wildcard && watch.names.size > 0)) return undefined;
    const names = watch.wildcard ? undefined : watch.names.shared;
    const whole = watch.wildcard || names ? generator.whole?.(proxy, names) : undefined;
    return whole && { changed: whole.own, removed: [], shared: whole.shared };
  }

  protected override respond(watch: Watch, _generator: Generator, _proxy: Proxy, { changed, removed, shared, whole }: Delta): void {
    watch.noteSent(changed, shared);
    for (const name of removed) watch.sent.delete(name);
    if (whole) watch.noteWhole(whole);
    const head = { type_url: watch.typeUrl, system_version_info: this.context.version(), nonce: this.nextNonce(watch), removed_resources: removed };
    this.write(watch.typeUrl, encodeDelta(head, changed, shared));
  }
}
