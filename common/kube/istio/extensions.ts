/** Istio's extensions.istio.io/WasmPlugin in full. */
import type { KubeObject } from '../object.js';
import type { PolicyTargetReference, WorkloadMode, WorkloadSelector } from './selectors.js';

export interface WasmPlugin extends KubeObject {
  kind: 'WasmPlugin';
  spec: {
    selector?: WorkloadSelector;
    targetRef?: PolicyTargetReference;
    targetRefs?: PolicyTargetReference[];
    /** `file://`, `http(s)://` or `oci://`; without a scheme it is OCI. */
    url: string;
    /** Hexadecimal, 64 digits. */
    sha256?: string;
    imagePullPolicy?: 'UNSPECIFIED_POLICY' | 'IfNotPresent' | 'Always';
    imagePullSecret?: string;
    verificationKey?: string;
    pluginConfig?: Record<string, unknown>;
    pluginName?: string;
    phase?: 'UNSPECIFIED_PHASE' | 'AUTHN' | 'AUTHZ' | 'STATS';
    /** Higher ones come first within a phase. */
    priority?: number;
    failStrategy?: 'FAIL_CLOSE' | 'FAIL_OPEN' | 'FAIL_RELOAD';
    vmConfig?: { env?: { name: string; valueFrom?: 'INLINE' | 'HOST'; value?: string }[] };
    match?: { mode?: WorkloadMode; ports?: { number: number }[] }[];
    type?: 'UNSPECIFIED_PLUGIN_TYPE' | 'HTTP' | 'NETWORK';
  };
}
