export { Lab } from './lab.js';
export type { ExecOptions, LabOptions, PodReference } from './options.js';
export { cleanLabs, knownLabs, type CleanReport } from './clean.js';
export { heldMessage, liveHolder, readHolder, type LabHolder } from './lock.js';
export { ServerCertificates, type ServerCertificate } from './server-certificates.js';
export { DEFAULT_DISCOVERY, LabNames } from './names.js';
