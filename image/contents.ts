/** What the image holds, by name. The rest (modules, npm packages, libraries, licences) is found from these. */

/** Where the product lies in the image. */
export const PREFIX = '/opt/underpass';

/** The module whose imports, near and far, are all of the product's code but that for browsers. */
export const ENTRY_MODULE = 'dist/cli/main.js';

/** These work on a developer's machine alone, with nginx, wrk, tar and more that no node has. */
export const COMMANDS_LEFT_OUT = ['bench', 'bug-report', 'demo', 'lab'] as const;

/** Modules for browsers, which no module of the command line imports. */
export const PAGE_MODULES = ['dist/dashboard/main.js', 'dist/dashboard/worker.js', 'dist/dashboard/draw-worker.js'] as const;

/** Files that are read or started at run time, below the project's folder. */
export const PRODUCT_FILES = [
  'bin/underpass',
  'package.json',
  'proto/generated/descriptors.binpb',
  'dashboard/index.html',
  'dashboard/style.css',
  'dashboard/icon.svg',
  'deploy/agent-rbac.yaml',
  'deploy/pilot-rbac.yaml',
  'deploy/remote-rbac.yaml',
  'build/underpass.node',
  'build/underpass-exec',
  'build/underpass-cni',
  'build/underpass-launcher',
  'build/underpass-fresh',
  'build/socket-probe',
  'build/socket-ends',
  'build/envoy/envoy',
] as const;

/** Programs of Debian's that the product starts, each with who does. */
export const PROGRAMS: Readonly<Record<string, string>> = {
  sh: 'bin/underpass',
  readlink: 'bin/underpass',
  dirname: 'bin/underpass',
  node: 'bin/underpass',
  cat: 'the agent, for /proc/net in a pod\'s network namespace',
  grep: 'the agent, for the tables of iptables-legacy in a pod\'s network namespace',
  'iptables-nft': 'the agent, for redirection',
  'iptables-nft-save': 'the agent, for redirection',
  'iptables-nft-restore': 'the agent, for redirection',
  'ip6tables-nft': 'the agent, for redirection',
  'ip6tables-nft-save': 'the agent, for redirection',
  'ip6tables-nft-restore': 'the agent, for redirection',
  'iptables-legacy': 'the agent, for redirection of pods whose rules are of that kind',
  'iptables-legacy-save': 'the agent, for redirection of pods whose rules are of that kind',
  'iptables-legacy-restore': 'the agent, for redirection of pods whose rules are of that kind',
  'ip6tables-legacy': 'the agent, for redirection of pods whose rules are of that kind',
  'ip6tables-legacy-save': 'the agent, for redirection of pods whose rules are of that kind',
  'ip6tables-legacy-restore': 'the agent, for redirection of pods whose rules are of that kind',
  nft: 'the agent, which deletes the nat table that iptables-nft made',
  iptables: 'underpass doctor',
  'iptables-restore': 'underpass doctor',
  ip6tables: 'underpass doctor',
  'ip6tables-restore': 'underpass doctor',
  unshare: 'underpass doctor',
  true: 'underpass doctor',
};

/** Folders of libraries that programs open by name at run time. */
export const PLUGIN_FOLDERS = ['xtables'] as const;

/** Root certificates of public authorities, for Envoy and JSON Web Key Sets: a file that Debian's ca-certificates makes at installation. */
export const ROOT_CERTIFICATES = { path: '/etc/ssl/certs/ca-certificates.crt', package: 'ca-certificates' } as const;

/** Which Debian this is. */
export const SYSTEM_FILES = ['/etc/debian_version', '/etc/os-release'] as const;

/** The user that everything but the agent runs as; the agent needs root. */
export const USER_ID = 65532;
