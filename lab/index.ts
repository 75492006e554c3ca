export { Lab, DEFAULT_DISCOVERY, type ExecOptions, type LabOptions, type PodReference } from './lab.js';
export { cleanLabs, knownLabs, type CleanReport } from './clean.js';
export { heldMessage, liveHolder, readHolder, type LabHolder } from './lock.js';
export { LabNames } from './names.js';
