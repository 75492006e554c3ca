/** ServiceEntries of each resolution, WorkloadEntries that come and go: pilot's answers against those of a recorded istiod. */
import { rewrite, testScenario, type Json, type JsonObject } from './testing/istiod.js';

/** Which addresses were free when istiod looked depends on its past; pilot's are drawn from the host's name. Both from the same blocks. */
function sameBlock(json: JsonObject): Json {
  return rewrite(json, (object, path) => {
    const bytes = path.at(-1) === 'addresses' && typeof object['address'] === 'string' ? Buffer.from(object['address'], 'base64') : undefined;
    if (bytes?.length === 4 && bytes.readUInt16BE(0) === 0xf0f0) return { ...object, address: '240.240.0.0/16' };
    if (bytes?.length === 16 && bytes.readUInt32BE(0) === 0x2001_0002) return { ...object, address: '2001:2::/48' };
    return object;
  });
}

testScenario({ scenario: 'service-entry', session: 'toolbox-v1-6d9f-hbone-delta' });
testScenario({ scenario: 'service-entry', session: 'ztunnel-node-1', istiod: sameBlock, pilot: sameBlock });
