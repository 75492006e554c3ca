/** By which a client's sidecar tells the proxy at the other end whose workload it is: for that proxy's metrics, and for nobody behind it. */
export const PEER_HEADER = 'x-underpass-workload';
