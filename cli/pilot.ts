/** `underpass pilot`: the control plane alone. */
import type { Command } from 'commander';
import { duration, wholeNumber } from '../common/arguments.js';
import { KubeClient } from '../common/kube/client.js';
import { inClusterServer, readKubeconfig, type ApiServer } from '../common/kube/kubeconfig.js';
import { logger } from '../common/log.js';
import { Pilot, PILOT_RIGHTS, type MeshConfig, type PilotOptions } from '../pilot/index.js';

const DEFAULT_LISTEN = '127.0.0.1:15010';
/** istiod's monitoring port. */
const DEFAULT_MONITORING = '127.0.0.1:15014';

interface Options {
  source?: string[];
  kubeconfig?: string;
  context?: string;
  readOnly?: boolean;
  listen?: string[];
  meshConfig?: string;
  monitoringListen?: string;
  provisionDir?: string;
  webhookListen?: string;
  injectionConfig?: string;
  webhookConfigurations?: string;
  webhookUrl?: string;
  secureListen?: string[];
  secureHost?: string[];
  caDir?: string;
  caState?: string;
  tokenJwks?: string;
  tokenIssuer?: string;
  tokenAudience?: string[];
  tokenReview?: boolean;
  nodeAccount?: string[];
  trustDomain?: string;
  outboundTrafficPolicy?: string;
  maxStreamAge?: number;
  maxStreams?: number;
  maxNames?: number;
  firstRequestTimeout?: number;
  drainTime?: number;
}

const collect = (value: string, all: string[] | undefined): string[] => [...(all ?? []), value];

export function configure(command: Command): void {
  command
    .option('--source <[cluster=name[,network=name]:]dir>', 'directory (or file) of Kubernetes and Istio YAML, followed live; may be given several times, later ones override; cluster=NAME,network=NETWORK:DIR is of that cluster, and the first one has the configuration of all', collect)
    .option('--kubeconfig <file>', 'read the API server of the cluster that has the configuration, besides what --source says (default: without --source, that of the cluster that this is a pod of); remote clusters join by Secrets labelled istio/multiCluster=true')
    .option('--read-only', 'write nothing to that API server: no status, no ConfigMaps, no proxies of Gateways, no CA of webhooks')
    .option('--context <name>', 'of the kubeconfig (default: its current one)')
    .option('--listen <address>', `host:port or unix:PATH for ADS; may be given several times (default ${DEFAULT_LISTEN})`, collect)
    .option('--secure-listen <address>', "host:port for ADS and the CA over TLS, istiod's is 15012; may be given several times (default: none)", collect)
    .option('--secure-host <name>', 'another name or address in the certificate of the TLS port; may be given several times', collect)
    .option('--ca-dir <dir>', "an intermediate CA in Istio's files: ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem; followed live (default: the Secret cacerts of the root namespace, else a root of its own)")
    .option('--ca-state <file>', 'keep the self-signed root there, readable by its owner alone (default: the Secret underpass-ca of the root namespace, which all pilots of a cluster share; without an API server, or with --read-only, it ends with the process)')
    .option('--token-jwks <file>', 'file or https URL of the keys that service account tokens are verified with')
    .option('--token-issuer <issuer>', "the tokens' issuer (default https://kubernetes.default.svc.cluster.local)")
    .option('--token-audience <audience>', "the tokens' audience; may be given several times (default istio-ca)", collect)
    .option('--token-review', "ask Kubernetes' API server about tokens (default: if one is known and no --token-jwks is given)")
    .option('--node-account <account>', "namespace/service-account of nodes' proxies that may ask for their pods' identities; may be given several times", collect)
    .option('--monitoring-listen <address>', `host:port for /metrics, /ready and /debug pages, the latter over the network for tokens of the root namespace only; "none" for none (default ${DEFAULT_MONITORING})`)
    .option('--webhook-listen <address>', 'host:port for the webhooks over HTTPS: /inject and /validate (default: none)')
    .option('--injection-config <file>', 'templates and values of sidecar injection, followed live')
    .option('--webhook-configurations <file>', 'write the webhook configurations for the API server there, with the CA in them')
    .option('--webhook-url <url>', 'how the API server reaches the webhooks (default: the Service istiod of the root namespace)')
    .option('--provision-dir <dir>', 'write the proxies of Gateway API Gateways there, one file a Gateway, e.g. for the lab to start')
    .option('--mesh-config <file>', "Istio's MeshConfig, followed live (default: the ConfigMap istio of the root namespace, if a source has it)")
    .option('--trust-domain <domain>', "SPIFFE trust domain (default: MeshConfig's, else cluster.local)")
    .option('--outbound-traffic-policy <policy>', "ALLOW_ANY or REGISTRY_ONLY: what happens to traffic towards no service (default: MeshConfig's, else ALLOW_ANY)")
    .option('--max-stream-age <duration>', 'streams over TCP end by then, a tenth more or less, and their clients open others (default 30m)', duration)
    .option('--max-streams <n>', 'streams that one pod, or one address, may have open (default 2000)', wholeNumber(1, 1_000_000))
    .option('--max-names <n>', 'resources of one type that a stream may subscribe to by name (default 100000)', wholeNumber(1, 100_000_000))
    .option('--first-request-timeout <duration>', 'a stream that has asked for nothing by then is ended (default 30s)', duration)
    .option('--drain-time <duration>', 'when it is told to stop: not ready, serve on for this long, then have clients go elsewhere over half of it (default 0s)', duration)
    .action(async (options: Options) => {
      const { outboundTrafficPolicy } = options;
      if (outboundTrafficPolicy !== undefined && outboundTrafficPolicy !== 'ALLOW_ANY' && outboundTrafficPolicy !== 'REGISTRY_ONLY') command.error(`--outbound-traffic-policy: found ${outboundTrafficPolicy}, expected ALLOW_ANY or REGISTRY_ONLY`);
      const { source: sources = [], kubeconfig, context } = options;
      const own = kubeconfig === undefined && sources.length === 0 ? inClusterServer() : undefined;
      const apiServer = kubeconfig === undefined ? own : await readKubeconfig(kubeconfig, context);
      if (sources.length === 0 && !apiServer) command.error('nothing to read: give --source or --kubeconfig (this is no pod of a cluster, whose API server would be read)');
      const log = logger('pilot');
      const monitoringListen = options.monitoringListen ?? DEFAULT_MONITORING;
      const meshConfig: Partial<MeshConfig> = {
        ...(options.trustDomain === undefined ? {} : { trustDomain: options.trustDomain }),
        ...(outboundTrafficPolicy === undefined ? {} : { outboundTrafficPolicy: outboundTrafficPolicy as MeshConfig['outboundTrafficPolicy'] }),
      };
      const meshConfigFile = options.meshConfig === undefined ? {} : { meshConfigFile: options.meshConfig };
      const webhooks = webhooksOf(options);
      const reviewer = apiServer ?? inClusterServer();
      if (options.tokenReview && !reviewer) command.error('--token-review: there is no API server to ask: give --kubeconfig, or run as a pod');
      const security = securityOf(options, reviewer);
      const pilot = new Pilot({ sources, ...(apiServer ? { apiServer } : {}), ...(own ? { apiServerStartMs: Infinity } : {}), ...(options.readOnly ? { readOnly: true } : {}), listen: options.listen ?? [DEFAULT_LISTEN], meshConfig, ...meshConfigFile, ...(monitoringListen === 'none' ? {} : { monitoringListen }), ...(webhooks ? { webhooks } : {}), ...(security ? { security } : {}), ...(options.provisionDir === undefined ? {} : { provisionDir: options.provisionDir }), limits: limitsOf(options), logger: log });
      // A second one ends it at once.
      const stopped = new Promise<string>((resolve) => {
        for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve(signal));
      });
      const isStarted = await Promise.race([pilot.start().then(() => true), stopped.then(() => false)]);
      log.info({ signal: await stopped }, 'stopping');
      if (isStarted && options.drainTime) await pilot.drain(options.drainTime);
      await pilot.stop();
      // It may be waiting for an API server yet.
      if (!isStarted) process.exit();
    });
}

function limitsOf({ maxStreamAge, maxStreams, maxNames, firstRequestTimeout }: Options): NonNullable<PilotOptions['limits']> {
  return {
    ...(maxStreamAge === undefined ? {} : { streamAgeMs: maxStreamAge }),
    ...(maxStreams === undefined ? {} : { streamsPerPeer: maxStreams }),
    ...(maxNames === undefined ? {} : { namesPerType: maxNames }),
    ...(firstRequestTimeout === undefined ? {} : { firstRequestMs: firstRequestTimeout }),
  };
}

function webhooksOf({ webhookListen, injectionConfig, webhookConfigurations, webhookUrl }: Options): PilotOptions['webhooks'] {
  if (webhookListen === undefined) return undefined;
  return {
    listen: webhookListen,
    ...(injectionConfig === undefined ? {} : { injectionFile: injectionConfig }),
    ...(webhookConfigurations === undefined ? {} : { configurationsFile: webhookConfigurations }),
    ...(webhookUrl === undefined ? {} : { url: webhookUrl }),
  };
}

/** @param apiServer asked about tokens when nothing else is said of them */
function securityOf(options: Options, apiServer: ApiServer | undefined): PilotOptions['security'] {
  const { secureListen, secureHost, caDir, caState, tokenJwks, tokenIssuer, tokenAudience, tokenReview, nodeAccount } = options;
  if (secureListen === undefined) return undefined;
  return {
    listen: secureListen,
    ...(secureHost === undefined ? {} : { hosts: secureHost }),
    ...(caDir === undefined ? {} : { caDirectory: caDir }),
    ...(caState === undefined ? {} : { caStateFile: caState }),
    ...(tokenJwks === undefined ? {} : { tokenJwks }),
    ...(tokenIssuer === undefined ? {} : { tokenIssuer }),
    ...(tokenAudience === undefined ? {} : { tokenAudiences: tokenAudience }),
    ...(apiServer && (tokenReview ?? tokenJwks === undefined) ? { tokenReview: new KubeClient(apiServer, 'underpass-pilot', PILOT_RIGHTS) } : {}),
    ...(nodeAccount === undefined ? {} : { nodeAccounts: nodeAccount }),
  };
}
