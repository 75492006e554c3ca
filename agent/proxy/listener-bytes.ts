/**
 * Listeners as bytes, of which those of chains that many listeners have are there once: a class's internal listener has a chain for each
 * of a mesh's TCP services, with loggers of some KiB, and all classes' are alike but for their names.
 */
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { heldBytes } from '../../common/held-bytes.js';
import { encode } from '../../common/xds/any.js';
import { PartedAny } from './route-tables.js';
import { hashBytes } from '../xds/resource-type.js';
import { LDS, type Entry } from './snapshot.js';

const EMPTY = Listener.fromPartial({});
/** A field `filter_chains` with the one chain. */
const ofChains = new WeakMap<FilterChain, Buffer>();

/** @param listener its chains are not altered any more; the bytes are those of its encoding, in the order of the generated code */
export function listenerEntry(listener: Listener, needs: readonly string[]): Entry {
  const { name, address, additional_addresses, stat_prefix, filter_chains } = listener;
  const before = encode(Listener, { ...EMPTY, name, address, additional_addresses, stat_prefix });
  const behind = encode(Listener, { ...listener, name: '', address: undefined, additional_addresses: [], stat_prefix: '', filter_chains: [] });
  const any = new PartedAny(LDS, [before, ...filter_chains.map(chainField), behind]);
  return { name, version: hashBytes(...any.parts), any, needs };
}

function chainField(chain: FilterChain): Buffer {
  let bytes = ofChains.get(chain);
  if (!bytes) {
    ofChains.set(chain, (bytes = heldBytes(encode(Listener, { ...EMPTY, filter_chains: [chain] }))));
    for (const { config_type: config } of chain.filters) if (config?.$case === 'typed_config') config.value.value = within(bytes, config.value.value);
  }
  return bytes;
}

/** The same bytes, as a part of the others: a filter's settings are most of a chain, and need not be there twice. */
function within(all: Buffer, part: Buffer): Buffer {
  const at = all.indexOf(part);
  return at < 0 ? part : all.subarray(at, at + part.length);
}
