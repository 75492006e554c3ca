/** The shared Envoy's bootstrap: who it is, where its agent is, nothing else; all that it proxies comes over ADS. */

export interface BootstrapOptions {
  nodeName: string;
  /** Tells one Envoy from the next on the same sockets. */
  launch: string;
  adsSocketPath: string;
  adminSocketPath: string;
  /** Addresses of the DNS servers to ask; without any, those of /etc/resolv.conf. */
  dnsServers?: readonly string[];
}

/** A multiple of the five seconds between flushes. */
const STATS_EVICTION_SECONDS = 300;
export const ADS_CLUSTER = 'underpass-agent';
/** As which Envoy names itself to others. */
export const ENVOY_CLUSTER = 'underpass';

/** The bootstrap as Envoy reads it from a JSON file. */
export function bootstrap({ nodeName, launch, adsSocketPath, adminSocketPath, dnsServers = [] }: BootstrapOptions): Record<string, unknown> {
  return {
    node: { id: `underpass~${nodeName}`, cluster: ENVOY_CLUSTER, metadata: { launch } },
    admin: { address: { pipe: { path: adminSocketPath, mode: 0o600 } } },
    dynamic_resources: {
      ads_config: {
        api_type: 'DELTA_GRPC',
        transport_api_version: 'V3',
        set_node_on_first_message_only: true,
        grpc_services: [
          {
            envoy_grpc: {
              cluster_name: ADS_CLUSTER,
              // Bounds how long a restarted agent waits to be found; Envoy's own backs off to 30 s.
              retry_policy: { retry_back_off: { base_interval: '0.1s', max_interval: '1s' } },
            },
          },
        ],
      },
      // 0s: wait for the agent for as long as it takes, rather than start with nothing.
      cds_config: { ads: {}, resource_api_version: 'V3', initial_fetch_timeout: '0s' },
      lds_config: { ads: {}, resource_api_version: 'V3', initial_fetch_timeout: '0s' },
    },
    // Health checks of the control plane's, by way of the agent.
    hds_config: { api_type: 'GRPC', transport_api_version: 'V3', set_node_on_first_message_only: true, grpc_services: [{ envoy_grpc: { cluster_name: ADS_CLUSTER } }] },
    static_resources: {
      clusters: [
        {
          name: ADS_CLUSTER,
          type: 'STATIC',
          connect_timeout: '1s',
          typed_extension_protocol_options: {
            'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
              '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions',
              explicit_http_config: { http2_protocol_options: {} },
            },
          },
          load_assignment: {
            cluster_name: ADS_CLUSTER,
            endpoints: [{ lb_endpoints: [{ endpoint: { address: { pipe: { path: adsSocketPath } } } }] }],
          },
        },
      ],
    },
    // One resolver for all clusters, with the bound that Istio gives each (fold-clusters.ts takes theirs away).
    typed_dns_resolver_config: {
      name: 'envoy.network.dns_resolver.cares',
      typed_config: {
        '@type': 'type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig',
        udp_max_queries: 100,
        resolvers: dnsServers.map((address) => ({ socket_address: { address, port_value: 53 } })),
      },
    },
    bootstrap_extensions: [
      { name: 'envoy.bootstrap.internal_listener', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener' } },
    ],
    // What is counted by request and was not counted up between two of these is dropped (request-log.ts); the agent reads more often.
    stats_eviction_interval: `${STATS_EVICTION_SECONDS}s`,
    // A mesh has many clusters and a pod talks to few: counters come into being when they first count.
    deferred_stat_options: { enable_deferred_creation_stats: true },
    layered_runtime: { layers: [{ name: 'static', static_layer: {
      're2.max_program_size.error_level': 32768,
      // With it a connection between internal listeners that is closed right after its last data loses that data.
      'envoy.reloadable_features.enable_send_rst_on_user_space_socket': false,
    } }, { name: 'admin', admin_layer: {} }] },
  };
}
