import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { FilterChain, type Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import '../../proto/generated/envoy/extensions/filters/http/rbac/v3/rbac.js';
import '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { RBAC as NetworkRbac } from '../../proto/generated/envoy/extensions/filters/network/rbac/v3/rbac.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { unpack } from '../../common/xds/any.js';
import { byCallerAddress } from './caller-address.js';

const rules = (principals: object[]): object => ({ policies: { p: { permissions: [{ any: true }], principals } } });
const rbac = (kind: 'http' | 'network', settings: object): object => ({ name: 'rbac', typed_config: { '@type': `type.googleapis.com/envoy.extensions.filters.${kind}.rbac.v3.RBAC`, ...settings } });
const chain = (filter: object): FilterChain => FilterChain.fromJSON({ name: 'c', filters: [filter] });
const range = { direct_remote_ip: { address_prefix: '10.0.0.0', prefix_len: 8 } };
/** FilterStateMatcher{key, 3: AddressMatcher{1: 10.0.0.0/8}} in protobuf's own form, as Envoy 1.40's protos have it. */
const MATCHER = Buffer.concat([Buffer.from('\n\x18underpass.caller_address\x1a\x10\n\x0e\n\x0810.0.0.0\x12\x02\x08\x08', 'latin1')]);

function configOf(filter: Filter | undefined): Any {
  assert.ok(filter?.config_type?.$case === 'typed_config');
  return filter.config_type.value;
}

describe('byCallerAddress', () => {
  it('looks for the address in filter state, in combinations and negations and dry runs too', () => {
    for (const principals of [[range], [{ and_ids: { ids: [{ not_id: range }] } }], [{ or_ids: { ids: [{ any: true }, range] } }]]) {
      for (const field of ['rules', 'shadow_rules']) {
        const { filters } = byCallerAddress(chain(rbac('network', { stat_prefix: 'x', [field]: rules(principals) })));
        assert.deepEqual(filters.map(({ name }) => name), ['underpass.caller_address', 'rbac']);
        const value = configOf(filters[1]);
        assert.ok(value.value.includes(MATCHER), JSON.stringify([principals, field]));
        assert.doesNotMatch(JSON.stringify(NetworkRbac.toJSON(unpack(NetworkRbac, value)!)), /directRemoteIp/);
      }
    }
  });

  it('reaches the filters of HTTP', () => {
    const manager = { name: 'http', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager', stat_prefix: 'x', http_filters: [rbac('http', { rules: rules([range]) })] } };
    const { filters } = byCallerAddress(chain(manager));
    assert.equal(filters[0]?.name, 'underpass.caller_address');
    assert.ok(configOf(filters[1]).value.includes(MATCHER));
  });

  it('leaves a chain as it is that asks for no address', () => {
    const other = chain(rbac('network', { stat_prefix: 'x', rules: rules([{ remote_ip: { address_prefix: '10.0.0.0', prefix_len: 8 } }, { any: true }]) }));
    assert.equal(byCallerAddress(other), other);
  });
});
