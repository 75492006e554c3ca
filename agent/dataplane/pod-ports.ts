/** Whether the ports where the proxy listens in a pod are free there. One look at the pod's sockets answers for all of them. */
import { errorMessage } from '../../common/errors.js';
import { HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT } from '../../common/istio-iptables.js';
import type { Logger } from '../../common/log.js';
import type { Namespaces } from './collaborators.js';

const OUTCOMES = new Map([[HBONE_PORT, 'HBONE does not end there'], [INBOUND_PORT, 'nobody is led to the proxy there']]);

export class PodPorts {
  /** Undefined until they were looked at. */
  hboneFree: boolean | undefined;
  inboundFree: boolean | undefined;

  /**
   * Before the proxy listens in the pod: after a failed bind Envoy's main thread would stay in the pod's namespace.
   * @throws Error where the outbound port is taken, without which there is no capture, or the sockets can't be read
   */
  async beforeListening(namespaces: Namespaces, netns: string): Promise<void> {
    const taken = await namespaces.takenPorts(netns, [{ port: OUTBOUND_PORT, where: 'loopback' }, { port: HBONE_PORT }, { port: INBOUND_PORT }]);
    if (taken.has(OUTBOUND_PORT)) throw new Error(`port ${OUTBOUND_PORT} of the pod, where the proxy has to listen, is a program's of its own`);
    this.hboneFree = !taken.has(HBONE_PORT);
    this.inboundFree = !taken.has(INBOUND_PORT);
  }

  /** Of a pod in which a former agent's proxy listens; what is known stays, since by now the listener may be the proxy's. */
  async whileListening(namespaces: Namespaces, netns: string, logger: Logger, pod: string): Promise<void> {
    if (this.hboneFree !== undefined && this.inboundFree !== undefined) return;
    const unknown = [...(this.hboneFree === undefined ? [HBONE_PORT] : []), ...(this.inboundFree === undefined ? [INBOUND_PORT] : [])];
    let taken: ReadonlySet<number>;
    try {
      taken = await namespaces.takenPorts(netns, unknown.map((port) => ({ port })));
    } catch (error) {
      for (const port of unknown) logger.warn({ pod, reason: errorMessage(error) }, `who listens on port ${port} of the pod can't be read; ${OUTCOMES.get(port)}`);
      taken = new Set(unknown);
    }
    this.hboneFree ??= !taken.has(HBONE_PORT);
    this.inboundFree ??= !taken.has(INBOUND_PORT);
  }

  /** The proxy has left the pod. */
  forget(): void {
    this.hboneFree = this.inboundFree = undefined;
  }
}
