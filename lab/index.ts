export { Lab, type ExecOptions, type LabOptions, type PodReference } from './lab.js';
export { cleanLabs, knownLabs, type CleanReport } from './clean.js';
export { heldMessage, liveHolder, readHolder, type LabHolder } from './lock.js';
export { DEFAULT_DISCOVERY, LabNames } from './names.js';
