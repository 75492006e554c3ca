/** A CA that was given: by directory and by Secret, and what happens when either changes. */
import assert from 'node:assert/strict';
import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { pino } from 'pino';
import { ManualClock } from '../../common/clock.js';
import { CertificateAuthority, type CaMaterial } from '../../common/identity/ca.js';
import { selfSignedRoot } from '../../common/identity/signing-key.js';
import { waitFor } from '../../common/retry.js';
import { CacertsWatcher, readCacerts } from './cacerts.js';
import { securePilot, type SecurePilot } from './testing.js';

const WAIT = { everyMs: 10 };
const given = async (): Promise<CaMaterial> => (await selfSignedRoot({ trustDomain: 'org', now: Date.now(), ttlMs: 3_600_000 })).material;

const secret = ({ certificatePem, privateKeyPem, rootPem }: CaMaterial): string =>
  JSON.stringify({
    apiVersion: 'v1',
    kind: 'Secret',
    metadata: { name: 'cacerts', namespace: 'istio-system' },
    data: Object.fromEntries(Object.entries({ 'ca-cert.pem': certificatePem, 'ca-key.pem': privateKeyPem, 'cert-chain.pem': certificatePem, 'root-cert.pem': rootPem }).map(([name, text]) => [name, Buffer.from(text).toString('base64')])),
  });

/** Replaced in one step, as whoever writes for others should. */
function write(mesh: SecurePilot, yaml: string): void {
  writeFileSync(join(mesh.folder, 'new'), yaml);
  renameSync(join(mesh.folder, 'new'), join(mesh.folder, 'config', 'mesh.yaml'));
}

test('the Secret cacerts is the CA, and is followed; one that does not fit leaves the CA of before', async () => {
  const [one, two] = await Promise.all([given(), given()]);
  const mesh = await securePilot(secret(one));
  try {
    assert.equal(mesh.pilot.ca!.rootPem, one.rootPem);
    write(mesh, secret({ ...two, privateKeyPem: one.privateKeyPem }));
    await waitFor('it to be refused', () => mesh.log.some((line) => line.includes('ca-key.pem: it is not the key')), WAIT);
    assert.equal(mesh.pilot.ca!.rootPem, one.rootPem);
    write(mesh, secret(two));
    await waitFor('the other CA', () => mesh.pilot.ca!.rootPem === two.rootPem, WAIT);
    assert.ok(!mesh.log.join('').includes('PRIVATE KEY'));
  } finally {
    await mesh.store.close();
  }
});

test('a Secret cacerts that comes to a mesh with a root of its own does not take trust away from it', async () => {
  const mesh = await securePilot('');
  try {
    const { rootPem } = mesh.pilot.ca!;
    write(mesh, secret(await given()));
    await waitFor('it to be said', () => mesh.log.some((line) => line.includes('stays until the next start')), WAIT);
    assert.equal(mesh.pilot.ca!.rootPem, rootPem);
  } finally {
    await mesh.store.close();
  }
});

test('CacertsWatcher: takes over what a directory holds now; a file that is missing changes nothing', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-cacerts-'));
  try {
    const put = ({ certificatePem, privateKeyPem, rootPem }: CaMaterial): void => {
      for (const [name, text] of [['ca-cert.pem', certificatePem], ['ca-key.pem', privateKeyPem], ['cert-chain.pem', certificatePem], ['root-cert.pem', rootPem]] as const) writeFileSync(join(folder, name), text);
    };
    const [one, two] = await Promise.all([given(), given()]);
    put(one);
    const material = await readCacerts(folder);
    const ca = await CertificateAuthority.from(material, folder);
    const watcher = new CacertsWatcher(ca, folder, material, pino({ level: 'silent' }), new ManualClock());
    put(two);
    rmSync(join(folder, 'root-cert.pem'));
    await watcher.look();
    assert.equal(ca.rootPem, one.rootPem);
    await assert.rejects(readCacerts(folder), /root-cert\.pem: ENOENT/);
    put(two);
    await watcher.look();
    assert.equal(ca.rootPem, two.rootPem);
    watcher.close();
  } finally {
    rmSync(folder, { recursive: true });
  }
});
