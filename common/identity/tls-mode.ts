/** Istio's label of pods with a proxy that takes the mesh's mutual TLS (value `istio`): clients look at it. */
export const TLS_MODE_LABEL = 'security.istio.io/tlsMode';
export const TLS_MODE_ISTIO = 'istio';
