/** Istio's label of pods with a proxy that takes the mesh's mutual TLS (value `istio`): clients look at it. */
export const TLS_MODE_LABEL = 'security.istio.io/tlsMode';
export const TLS_MODE_ISTIO = 'istio';

/** Istio's annotation of pods whose traffic is redirected to their node's proxy (value `enabled`): they take HBONE on port 15008. */
export const REDIRECTION_ANNOTATION = 'ambient.istio.io/redirection';
export const REDIRECTION_ENABLED = 'enabled';
