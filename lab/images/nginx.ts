/** The `nginx` image: Debian's nginx, one worker, answers from memory so that a benchmark measures the way there; `/bytes/N` are files. */
/** Sizes of the files. */
export const NGINX_BYTES = [16_384, 262_144] as const;

export interface NginxOptions {
  /** A directory of its own for temporary files. */
  dir: string;
  ports: readonly number[];
  workers: number;
  ipv6: boolean;
  pod: string;
  namespace: string;
  version: string;
}

export function nginxConfig(options: NginxOptions): string {
  const { dir, ports, pod, namespace, version } = options;
  const body = JSON.stringify({ pod, namespace, version }).slice(0, -1);
  const temporary = (kind: string): string => `${kind}_temp_path ${dir}/${kind === 'client_body' ? 'body' : kind};`;
  return `daemon off;
worker_processes ${options.workers};
worker_rlimit_nofile 65536;
pid ${dir}/nginx.pid;
error_log stderr warn;
events {
  worker_connections 8192;
  multi_accept on;
}
http {
  access_log off;
  server_tokens off;
  default_type application/json;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  tcp_nodelay on;
  client_max_body_size 1g;
  ${['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(temporary).join('\n  ')}
  server {
${ports.flatMap((port) => [`    listen ${port} backlog=4096;`, ...(options.ipv6 ? [`    listen [::]:${port} ipv6only=on backlog=4096;`] : [])]).join('\n')}
    add_header x-pod "${pod}" always;
    add_header x-version "${version}" always;
    location / {
      return 200 '${body},"method":"$request_method","path":"$uri"}\\n';
    }
    location /bytes/ {
      root ${dir};
    }
    location = /healthz {
      return 200 'ok\\n';
    }
  }
}
`;
}
