/**
 * The Gateway API's kinds (gateway.networking.k8s.io) in full. Their interfaces have the kinds' own names, but for
 * KubeGateway: `Gateway` is Istio's. `HTTPRoute` is a kind here; `HttpRoute` a rule of Istio's VirtualService.
 */
import type { Condition, KubeObject } from './object.js';
import type { LabelSelector } from './types.js';

/** A Gateway of the Gateway API, in the route's namespace, where group, kind and namespace are left out. */
export interface ParentReference {
  group?: string;
  kind?: string;
  namespace?: string;
  name: string;
  sectionName?: string;
  port?: number;
}

/** `group` is empty and `kind` is Service where they are left out; `namespace` is the referrer's. */
export interface BackendObjectReference {
  group?: string;
  kind?: string;
  name: string;
  namespace?: string;
  port?: number;
}

export interface BackendRef extends BackendObjectReference {
  /** 1 where it is left out. */
  weight?: number;
}

export interface SecretObjectReference {
  group?: string;
  kind?: string;
  name: string;
  namespace?: string;
}

export interface LocalObjectReference {
  group: string;
  kind: string;
  name: string;
}

export interface GatewayClass extends KubeObject {
  kind: 'GatewayClass';
  spec: { controllerName: string; parametersRef?: LocalObjectReference & { namespace?: string }; description?: string };
  status?: { conditions?: Condition[]; supportedFeatures?: { name: string }[] };
}

export interface AllowedRoutes {
  namespaces?: { from?: 'All' | 'Selector' | 'Same' | 'None'; selector?: LabelSelector };
  kinds?: { group?: string; kind: string }[];
}

export interface ListenerTls {
  mode?: 'Terminate' | 'Passthrough';
  certificateRefs?: SecretObjectReference[];
  /** Before v1.4 of the API client certificates were asked for here. */
  frontendValidation?: { caCertificateRefs?: SecretObjectReference[]; mode?: 'AllowValidOnly' | 'AllowInsecureFallback' };
  options?: Record<string, string>;
}

export interface GatewayListener {
  name: string;
  hostname?: string;
  port: number;
  protocol: string;
  tls?: ListenerTls;
  allowedRoutes?: AllowedRoutes;
}

export interface FrontendTlsValidation {
  validation?: { caCertificateRefs: SecretObjectReference[]; mode?: 'AllowValidOnly' | 'AllowInsecureFallback' };
}

export interface KubeGateway extends KubeObject {
  kind: 'Gateway';
  spec: {
    gatewayClassName: string;
    listeners: GatewayListener[];
    addresses?: { type?: string; value?: string }[];
    infrastructure?: { labels?: Record<string, string>; annotations?: Record<string, string>; parametersRef?: LocalObjectReference };
    allowedListeners?: { namespaces?: AllowedRoutes['namespaces'] };
    tls?: {
      backend?: { clientCertificateRef?: SecretObjectReference };
      frontend?: { default: FrontendTlsValidation; perPort?: { port: number; tls: FrontendTlsValidation }[] };
    };
    defaultScope?: string;
  };
  status?: {
    addresses?: { type?: string; value: string }[];
    conditions?: Condition[];
    listeners?: { name: string; supportedKinds?: { group?: string; kind: string }[]; attachedRoutes: number; conditions: Condition[] }[];
    attachedListenerSets?: number;
  };
}

export interface NameValue {
  name: string;
  value: string;
}

export interface HTTPHeaderFilter {
  set?: NameValue[];
  add?: NameValue[];
  remove?: string[];
}

export interface HTTPPathModifier {
  type: 'ReplaceFullPath' | 'ReplacePrefixMatch';
  replaceFullPath?: string;
  replacePrefixMatch?: string;
}

export interface RequestMirrorFilter {
  backendRef: BackendObjectReference;
  percent?: number;
  fraction?: { numerator: number; denominator?: number };
}

export interface HTTPRouteFilter {
  type: 'RequestHeaderModifier' | 'ResponseHeaderModifier' | 'RequestMirror' | 'RequestRedirect' | 'URLRewrite' | 'CORS' | 'ExternalAuth' | 'ExtensionRef';
  requestHeaderModifier?: HTTPHeaderFilter;
  responseHeaderModifier?: HTTPHeaderFilter;
  requestMirror?: RequestMirrorFilter;
  requestRedirect?: { scheme?: string; hostname?: string; path?: HTTPPathModifier; port?: number; statusCode?: number };
  urlRewrite?: { hostname?: string; path?: HTTPPathModifier };
  cors?: {
    allowOrigins?: string[];
    allowCredentials?: boolean;
    allowMethods?: string[];
    allowHeaders?: string[];
    exposeHeaders?: string[];
    /** Seconds. */
    maxAge?: number;
  };
  externalAuth?: {
    protocol?: 'GRPC' | 'HTTP';
    backendRef?: BackendObjectReference;
    grpc?: { allowedHeaders?: string[] };
    http?: { path?: string; allowedHeaders?: string[]; allowedResponseHeaders?: string[] };
    forwardBody?: { maxSize?: number };
  };
  extensionRef?: LocalObjectReference;
}

export interface HTTPBackendRef extends BackendRef {
  filters?: HTTPRouteFilter[];
}

export interface HTTPPathMatch {
  /** PathPrefix where it is left out, as is `/` for the value. */
  type?: 'Exact' | 'PathPrefix' | 'RegularExpression';
  value?: string;
}

export interface TypedMatch extends NameValue {
  /** Exact where it is left out. */
  type?: 'Exact' | 'RegularExpression';
}

export interface HTTPRouteMatch {
  path?: HTTPPathMatch;
  headers?: TypedMatch[];
  queryParams?: TypedMatch[];
  method?: string;
}

export interface SessionPersistence {
  sessionName?: string;
  absoluteTimeout?: string;
  idleTimeout?: string;
  type?: 'Cookie' | 'Header';
  cookieConfig?: { lifetimeType?: 'Permanent' | 'Session' };
}

export interface HTTPRouteRule {
  name?: string;
  matches?: HTTPRouteMatch[];
  filters?: HTTPRouteFilter[];
  backendRefs?: HTTPBackendRef[];
  timeouts?: { request?: string; backendRequest?: string };
  retry?: { codes?: number[]; attempts?: number; backoff?: string };
  sessionPersistence?: SessionPersistence;
}

export interface RouteStatus {
  parents: { parentRef: ParentReference; controllerName: string; conditions: Condition[] }[];
}

/** What routes of every protocol have in common. */
export interface CommonRouteSpec {
  parentRefs?: ParentReference[];
  useDefaultGateways?: string;
}

export interface HTTPRoute extends KubeObject {
  kind: 'HTTPRoute';
  spec: CommonRouteSpec & { hostnames?: string[]; rules?: HTTPRouteRule[] };
  status?: RouteStatus;
}

export interface GRPCRouteFilter {
  type: 'RequestHeaderModifier' | 'ResponseHeaderModifier' | 'RequestMirror' | 'ExtensionRef';
  requestHeaderModifier?: HTTPHeaderFilter;
  responseHeaderModifier?: HTTPHeaderFilter;
  requestMirror?: RequestMirrorFilter;
  extensionRef?: LocalObjectReference;
}

export interface GRPCRouteMatch {
  method?: { type?: 'Exact' | 'RegularExpression'; service?: string; method?: string };
  headers?: TypedMatch[];
}

export interface GRPCRouteRule {
  name?: string;
  matches?: GRPCRouteMatch[];
  filters?: GRPCRouteFilter[];
  backendRefs?: (BackendRef & { filters?: GRPCRouteFilter[] })[];
  sessionPersistence?: SessionPersistence;
}

export interface GRPCRoute extends KubeObject {
  kind: 'GRPCRoute';
  spec: CommonRouteSpec & { hostnames?: string[]; rules?: GRPCRouteRule[] };
  status?: RouteStatus;
}

export interface TLSRoute extends KubeObject {
  kind: 'TLSRoute';
  spec: CommonRouteSpec & { hostnames?: string[]; rules: { name?: string; backendRefs?: BackendRef[] }[] };
  status?: RouteStatus;
}

export interface TCPRoute extends KubeObject {
  kind: 'TCPRoute';
  spec: CommonRouteSpec & { rules: { name?: string; backendRefs?: BackendRef[] }[] };
  status?: RouteStatus;
}

export interface ReferenceGrant extends KubeObject {
  kind: 'ReferenceGrant';
  spec: { from: { group: string; kind: string; namespace: string }[]; to: { group: string; kind: string; name?: string }[] };
}

export interface BackendTLSPolicy extends KubeObject {
  kind: 'BackendTLSPolicy';
  spec: {
    targetRefs: (LocalObjectReference & { sectionName?: string })[];
    validation: {
      caCertificateRefs?: LocalObjectReference[];
      wellKnownCACertificates?: 'System';
      hostname: string;
      subjectAltNames?: { type: 'Hostname' | 'URI'; hostname?: string; uri?: string }[];
    };
    options?: Record<string, string>;
  };
}
