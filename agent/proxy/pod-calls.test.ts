import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { chooseChain, targetOf } from '../testing/chain-choice.js';
import { markedAddress, podCallEntries, type CalledPod, type PodCalls } from './pod-calls.js';

const pod = (uid: string, ...addresses: string[]): CalledPod => ({ uid, addresses, inbound: `pod/${uid}/inbound-mesh/1` });
const listenerOf = ({ listeners }: PodCalls, name = 'pods'): Listener => Listener.decode(listeners.find((entry) => entry.name === name)!.any.value);
/** The cluster that a call of the marked address gets to. */
const led = (calls: PodCalls, address: string, name?: string): string => {
  const listener = listenerOf(calls, name);
  return targetOf(chooseChain(listener.filter_chains, undefined, { address, port: 8080, serverName: '', transport: 'raw_buffer', protocol: '' }));
};
const item = ({ clusters }: PodCalls, name: string) => Cluster.decode(clusters.find((entry) => entry.name === name)!.any.value).load_assignment?.endpoints[0]?.lb_endpoints[0];
const endpoint = (calls: PodCalls, name: string): unknown => {
  const host = item(calls, name)?.host_identifier;
  const address = host?.$case === 'endpoint' ? host.value.address?.address : undefined;
  return address?.$case === 'envoy_internal_address' ? address.value.address_name_specifier?.value : undefined;
};

describe('calls of pods by their own addresses', () => {
  it('are marked by the address\'s last three, and its last eight bytes', () => {
    assert.deepEqual(['10.1.2.3', 'fd00:1::5', 'fd00:1:2:3:4:5:6:7', '2001:db8::ff:0:1', '::1'].map(markedAddress), ['127.1.2.3', '100::5', '100::4:5:6:7', '100::ff:0:1', '100::1']);
  });

  it('lead to the inbound chains of the pod whose address it is', () => {
    const calls = podCallEntries([pod('u1', '10.1.2.3', 'fd00::3'), pod('u2', '10.1.2.4')], false);
    assert.deepEqual(['127.1.2.3', '100::3', '127.1.2.4'].map((address) => led(calls, address)), ['cluster pod/u1/calls', 'cluster pod/u1/calls-ipv6', 'cluster pod/u2/calls']);
    for (const name of ['pod/u1/calls', 'pod/u1/calls-ipv6']) assert.equal(endpoint(calls, name), 'pod/u1/inbound-mesh/1');
    assert.equal(led(calls, '127.1.2.5'), 'closed');
    const turned = podCallEntries([pod('u2', '10.1.2.4'), pod('u1', '10.1.2.3', 'fd00::3')], false);
    assert.deepEqual(turned.listeners.map(({ version }) => version), calls.listeners.map(({ version }) => version), 'the next agent may hear of them in another order');
  });

  it('tell the pod\'s listener by which family it is called: else it shows the caller\'s address of the other, and can\'t bind to it', () => {
    const calls = podCallEntries([pod('u1', '10.1.2.3', 'fd00::3')], false);
    const told = (name: string): unknown => item(calls, name)?.metadata?.filter_metadata['envoy.filters.listener.original_dst'];
    assert.deepEqual([told('pod/u1/calls'), told('pod/u1/calls-ipv6')], [{ called_by_ipv4: 'x' }, { called_by_ipv6: 'x' }]);
  });

  it('of two pods that look alike lead to neither', () => {
    const calls = podCallEntries([pod('u1', '10.1.2.3'), pod('u2', '11.1.2.3'), pod('u3', '10.1.2.9')], false);
    assert.deepEqual(['127.1.2.3', '127.1.2.9'].map((address) => led(calls, address)), ['closed', 'cluster pod/u3/calls']);
  });

  it('go through the pod\'s waypoint, unless it is a waypoint that calls', () => {
    const calls = podCallEntries([{ ...pod('u1', '10.1.2.3'), waypoint: 'waypoint/w' }], true);
    assert.equal(endpoint(calls, led(calls, '127.1.2.3').replace('cluster ', '')), 'waypoint/w');
    assert.equal(endpoint(calls, led(calls, '127.1.2.3', 'pods/from-waypoints').replace('cluster ', '')), 'pod/u1/inbound-mesh/1');
  });
});
