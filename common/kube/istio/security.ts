/** Istio's security.istio.io kinds in full. */
import type { KubeObject } from '../object.js';
import type { PolicyTargetReference, WorkloadSelector } from './selectors.js';

export type MutualTlsMode = 'UNSET' | 'DISABLE' | 'PERMISSIVE' | 'STRICT';

export interface PeerAuthentication extends KubeObject {
  kind: 'PeerAuthentication';
  /** The keys of portLevelMtls are the workload's ports, as text. */
  spec?: { selector?: WorkloadSelector; mtls?: { mode?: MutualTlsMode }; portLevelMtls?: Record<string, { mode?: MutualTlsMode }> };
}

export interface AuthorizationSource {
  principals?: string[];
  notPrincipals?: string[];
  requestPrincipals?: string[];
  notRequestPrincipals?: string[];
  /** `namespace/name` or `name`; may not stand with principals or namespaces. */
  serviceAccounts?: string[];
  notServiceAccounts?: string[];
  namespaces?: string[];
  notNamespaces?: string[];
  ipBlocks?: string[];
  notIpBlocks?: string[];
  remoteIpBlocks?: string[];
  notRemoteIpBlocks?: string[];
  trustDomains?: string[];
  notTrustDomains?: string[];
}

export interface AuthorizationOperation {
  hosts?: string[];
  notHosts?: string[];
  ports?: string[];
  notPorts?: string[];
  methods?: string[];
  notMethods?: string[];
  paths?: string[];
  notPaths?: string[];
}

export interface AuthorizationCondition {
  key: string;
  values?: string[];
  notValues?: string[];
}

export interface AuthorizationRule {
  from?: { source?: AuthorizationSource }[];
  to?: { operation?: AuthorizationOperation }[];
  when?: AuthorizationCondition[];
}

export interface AuthorizationPolicy extends KubeObject {
  kind: 'AuthorizationPolicy';
  /** No rules at all match nothing (ALLOW: deny everything); a rule with nothing in it matches everything. */
  spec?: {
    selector?: WorkloadSelector;
    targetRef?: PolicyTargetReference;
    targetRefs?: PolicyTargetReference[];
    rules?: AuthorizationRule[];
    /** ALLOW where it is left out. */
    action?: 'ALLOW' | 'DENY' | 'AUDIT' | 'CUSTOM';
    /** Only with CUSTOM: the name of an extension provider. */
    provider?: { name?: string };
  };
}

export interface JwtRule {
  issuer: string;
  audiences?: string[];
  jwksUri?: string;
  jwks?: string;
  fromHeaders?: { name: string; prefix?: string }[];
  fromParams?: string[];
  fromCookies?: string[];
  outputPayloadToHeader?: string;
  forwardOriginalToken?: boolean;
  outputClaimToHeaders?: { header: string; claim: string }[];
  timeout?: string;
  spaceDelimitedClaims?: string[];
}

export interface RequestAuthentication extends KubeObject {
  kind: 'RequestAuthentication';
  spec?: { selector?: WorkloadSelector; targetRef?: PolicyTargetReference; targetRefs?: PolicyTargetReference[]; jwtRules?: JwtRule[] };
}
