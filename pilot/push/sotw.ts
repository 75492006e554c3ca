/** State-of-the-world xDS: listeners and clusters always as a whole, endpoints and routes as far as they changed. */
import type { DiscoveryRequest } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import type { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { Generator } from '../generate/generator.js';
import { TYPE } from '../generate/resource.js';
import type { Proxy } from '../model/proxy.js';
import { Connection, type Delta, type Steps } from './connection.js';
import { encodeSotw } from './encode.js';
import { Watch } from './watch.js';

/** Envoy asks again for the endpoints of a cluster, the routes of a listener, that came anew; it waits for the answer. */
const DEPENDENT: Record<string, string> = { [TYPE.cluster]: TYPE.endpoint, [TYPE.listener]: TYPE.route };

export class SotwConnection extends Connection<DiscoveryRequest> {
  readonly variant = 'sotw';

  protected override nodeOf(request: DiscoveryRequest): Node | undefined {
    return request.node;
  }

  protected override *handle(request: DiscoveryRequest, proxy: Proxy): Steps {
    const generator = this.context.generators.get(request.type_url);
    if (!generator) return;
    const names = request.resource_names;
    yield* this.makeAhead(generator, proxy, names);
    let watch = this.watches.get(request.type_url);
    const isNew = !watch || request.response_nonce === '';
    if (!watch) this.watches.set(request.type_url, (watch = new Watch(request.type_url, this.context.maps)));
    // An answer to a response that a newer one has overtaken says nothing; the newer one's answer is to come.
    if (!isNew && !this.acknowledge(watch, request.response_nonce, request.error_detail?.message ?? undefined)) return;
    const added = names.filter((name) => !watch.names.has(name));
    watch.wildcard = names.includes('*') || (generator.wildcard && names.length === 0);
    watch.names.clear();
    watch.subscribe(names.filter((name) => name !== '*'), this.context.maxNames);
    for (const name of [...watch.sent.keys()]) if (!watch.wildcard && !watch.names.has(name)) watch.sent.delete(name);
    if (request.error_detail && added.length === 0) return;
    if (!isNew && added.length === 0 && !watch.alwaysRespond) return;
    watch.alwaysRespond = false;
    watch.sent.clear();
    this.respond(watch, generator, proxy, this.everything(watch, generator, proxy));
  }

  protected override respond(watch: Watch, generator: Generator, proxy: Proxy, delta: Delta): void {
    let resources = delta.changed;
    if (generator.wildcard) {
      watch.sent.clear();
      resources = this.everything(watch, generator, proxy).changed;
    }
    for (const name of delta.removed) watch.sent.delete(name);
    watch.noteSent(resources);
    const dependent = this.watches.get(DEPENDENT[watch.typeUrl] ?? '');
    if (dependent) dependent.alwaysRespond = true;
    this.write(watch.typeUrl, encodeSotw({ type_url: watch.typeUrl, version_info: this.context.version(), nonce: this.nextNonce(watch) }, resources));
  }
}
