/** What `helm uninstall` runs before it removes anything: the nodes' clean-up, with rights that are there for that time alone. */
import { image } from './agent-objects.js';
import { AGENT, AGENT_NAMESPACE, LABELS, account, role, rule } from './rbac.js';
import { comment, optional, value, type Mapping, type Template } from './template.js';

export const UNINSTALL = 'underpass-uninstall';
/** Of the whole Job; what it waits for one node is less. */
const DEADLINE_SECONDS = 900;
const NODE_SECONDS = 300;

export function uninstallRbac(): Mapping[] {
  const subject = { name: UNINSTALL, namespace: AGENT_NAMESPACE };
  return [
    account(UNINSTALL, AGENT_NAMESPACE),
    ...role(UNINSTALL, [rule('', ['pods'], ['list', 'watch']), rule('', ['nodes'], ['get'])], subject),
    ...role(UNINSTALL, [rule('apps', ['daemonsets'], ['get', 'delete'], [AGENT]), rule('', ['pods'], ['get', 'create', 'delete'])], subject, AGENT_NAMESPACE),
  ];
}

export function uninstallHooks(): Template[] {
  const job: Mapping = {
    apiVersion: 'batch/v1',
    kind: 'Job',
    metadata: { name: UNINSTALL, namespace: AGENT_NAMESPACE, labels: LABELS },
    spec: {
      backoffLimit: 0,
      activeDeadlineSeconds: DEADLINE_SECONDS,
      template: {
        metadata: { labels: { app: UNINSTALL } },
        spec: {
          serviceAccountName: UNINSTALL,
          restartPolicy: 'Never',
          nodeSelector: optional('agent.nodeSelector'),
          tolerations: optional('agent.tolerations'),
          imagePullSecrets: optional('imagePullSecrets'),
          securityContext: { runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, seccompProfile: { type: 'RuntimeDefault' } },
          containers: [{
            name: 'uninstall',
            image,
            imagePullPolicy: value('image.pullPolicy'),
            args: ['uninstall', comment('Helm removes all else when this has succeeded.', '--nodes-only'), `--timeout=${NODE_SECONDS}s`],
            securityContext: { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: ['ALL'] } },
            terminationMessagePolicy: 'FallbackToLogsOnError',
          }],
        },
      },
    },
  };
  return [...uninstallRbac(), job].map((object, index, all) => {
    const { metadata, ...rest } = object as { metadata: Mapping };
    const annotations = { 'helm.sh/hook': 'pre-delete', 'helm.sh/hook-weight': index === all.length - 1 ? '1' : '0', 'helm.sh/hook-delete-policy': 'before-hook-creation,hook-succeeded' };
    const { apiVersion, kind, ...more } = rest as Mapping;
    return { apiVersion: apiVersion!, kind: kind!, metadata: { ...metadata, annotations }, ...more };
  });
}
