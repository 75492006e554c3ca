// The harness of the mesh tests itself, with what every mode must do: route by weight and header, in both modes.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { MODES, MeshWorld } from './mesh/world.js';

const mesh = new MeshWorld('world');
before(() => mesh.up());
after(() => mesh.down());

const SUBSETS = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec: {host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---`;

for (const mode of MODES) {
  test(`requests are routed by weight and by header, and a change is in force when apply returns (${mode})`, async () => {
    const route = (weight: number): string => `${SUBSETS}
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
    - match: [{headers: {user: {exact: jesse}}}]
      route: [{destination: {host: web, subset: v2}}]
    - route:
        - {destination: {host: web, subset: v1}, weight: ${weight}}
        - {destination: {host: web, subset: v2}, weight: ${100 - weight}}
`;
    for (const [weight, version] of [[100, 'v1'], [0, 'v2'], [100, 'v1']] as const) {
      await mesh.apply(mode, route(weight));
      assert.deepEqual((await mesh.load(mode, 'http://web/', 20)).versions, { [version]: 20 });
    }
    assert.equal((await mesh.curl(mode, 'http://web/', { headers: { user: 'jesse' } })).version, 'v2');
    assert.deepEqual(await mesh.nacks(), []);
    await mesh.clear(mode);
    assert.equal((await mesh.curl(mode, 'http://web/x?y=z')).status, 200);
  });

  test(`a configuration that pilot refuses fails the test that applies it (${mode})`, async () => {
    await assert.rejects(mesh.apply(mode, 'apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: bad}\nspec: {hosts: [web], http: [{route: [{destination: {host: web, subset: nowhere}}]}]}\n'), /subset/);
    await mesh.clear(mode);
  });
}

test('a client outside of the mesh reaches servers in it', async () => {
  for (const mode of MODES) assert.match((await mesh.curl('outside', `http://web.${mode}/`)).version, /^v[12]$/);
});
