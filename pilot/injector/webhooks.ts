/** The webhooks as a part of the control plane: model, settings and CA brought together with the server. */
import { renameSync, writeFileSync } from 'node:fs';
import { isIP } from 'node:net';
import type { Registry } from 'prom-client';
import { stringify } from 'yaml';
import type { Signer } from '../../common/identity/server-certificate.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import type { InjectionValues } from '../../common/injection/config.js';
import type { MeshConfig } from '../model/mesh.js';
import type { Model } from '../model/model.js';
import { validateForAdmission, type Company } from '../validation/validate.js';
import { webhookConfigurations, type ConfigurationOptions } from './configurations.js';
import { LiveInjection } from './live-injection.js';
import { WebhookMetrics } from './metrics.js';
import { WebhookServer } from './webhook-server.js';

export interface WebhooksOptions {
  /** `host:port`; port 0 for any. */
  listen: string;
  /** Templates and values, see common/injection/config.ts. */
  injectionFile?: string;
  /** Where the webhook configurations for the API server are written, with the CA's certificate in them. */
  configurationsFile?: string;
  /** What the API server calls when it has no Service for this; default: the Service `istiod` of the root namespace. */
  url?: string;
}

export class Webhooks implements Closable {
  private constructor(
    readonly server: WebhookServer,
    readonly injection: LiveInjection,
    readonly signer: Signer,
    readonly metrics: WebhookMetrics,
    /** What the API server is meant to have. */
    readonly configurations: () => ConfigurationOptions,
  ) {}

  static async start(options: WebhooksOptions, context: { model: Model; signer: Signer; registry: Registry; logger: Logger; company?: Company; onCertificate?: () => void }): Promise<Webhooks> {
    const { model, signer, registry, logger, company } = context;
    const { rootNamespace } = model.mesh;
    const injection = new LiveInjection(options.injectionFile, () => valuesOf(model.mesh), logger);
    injection.start();
    const metrics = new WebhookMetrics(registry);
    const configurations = (): ConfigurationOptions => ({ revision: injection.current.revision, caPem: caPemOf(signer), target: options.url ? { url: options.url } : { service: { name: 'istiod', namespace: rootNamespace, port: 443 } } });
    try {
      const server = await WebhookServer.listen({
        listen: options.listen,
        signer,
        ...namesOf(options, rootNamespace, model.mesh.clusterDomain),
        injection: () => injection.current,
        namespaceLabels: (name) => model.namespaces.get(name)?.metadata.labels,
        check: (object) => validateForAdmission(object, company),
        metrics,
        logger,
        onCertificate: () => {
          writeConfigurations(options, configurations());
          context.onCertificate?.();
        },
      });
      return new Webhooks(server, injection, signer, metrics, configurations);
    } catch (error) {
      injection.close();
      throw error;
    }
  }

  async close(): Promise<void> {
    this.injection.close();
    await this.server.close();
  }
}

/** What the mesh's settings say of every proxy. */
export function valuesOf({ trustDomain, clusterDomain, clusterId, network, rootNamespace }: MeshConfig): Partial<InjectionValues> {
  return { trustDomain, meshId: trustDomain, clusterDomain, clusterId, network, caAddress: `istiod.${rootNamespace}.svc:15012` };
}

function namesOf({ listen, url }: WebhooksOptions, namespace: string, domain: string): { dnsNames: string[]; ips: string[] } {
  const service = `istiod.${namespace}.svc`;
  const hosts = [listen.slice(0, listen.lastIndexOf(':')).replace(/^\[|\]$/g, ''), ...(url ? [new URL(url).hostname.replace(/^\[|\]$/g, '')] : [])];
  return {
    dnsNames: [...new Set([service, `${service}.${domain}`, `istiod.${namespace}`, 'istiod', 'localhost', ...hosts.filter((host) => isIP(host) === 0)])],
    ips: [...new Set(hosts.filter((host) => isIP(host) !== 0 && host !== '0.0.0.0' && host !== '::'))],
  };
}

/** A CA may sign by an intermediate, or trust two roots while they are exchanged. */
function caPemOf(signer: Signer): string {
  return signer.rootPem ?? signer.root.toString('pem');
}

/** With every certificate of the server's: by then the CA may be another one. */
function writeConfigurations({ configurationsFile }: WebhooksOptions, wanted: ConfigurationOptions): void {
  if (configurationsFile === undefined) return;
  const text = webhookConfigurations(wanted).map((object) => stringify(object, { lineWidth: 0 })).join('---\n');
  const temporary = `${configurationsFile}.new`;
  writeFileSync(temporary, text);
  renameSync(temporary, configurationsFile);
}
