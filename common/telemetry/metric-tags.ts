/**
 * Values of Telemetry's `tagOverrides`. Istio's are expressions in CEL over Envoy's attributes
 * (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/advanced/attributes); here texts, attributes that one of Envoy's
 * formatters says, and either of them joined by `+`: a proxy would refuse a whole listener for an expression that it can't read.
 */

/** A text, or a command of Envoy's formatters. */
export type TagTerm = { text: string } | { command: string; param?: string };

const COMMANDS: Readonly<Record<string, { command: string; param?: string }>> = {
  'request.host': { command: 'REQ', param: ':AUTHORITY' },
  'request.method': { command: 'REQ', param: ':METHOD' },
  'request.path': { command: 'REQ', param: ':PATH' },
  'request.url_path': { command: 'PATH', param: 'NQ:PATH' },
  'request.query': { command: 'QUERY_PARAMS', param: 'ORIG' },
  'request.scheme': { command: 'REQ', param: ':SCHEME' },
  'request.useragent': { command: 'REQ', param: 'USER-AGENT' },
  'request.referer': { command: 'REQ', param: 'REFERER' },
  'request.id': { command: 'REQ', param: 'X-REQUEST-ID' },
  'request.protocol': { command: 'PROTOCOL' },
  'response.code': { command: 'RESPONSE_CODE' },
  'response.code_details': { command: 'RESPONSE_CODE_DETAILS' },
  'response.grpc_status': { command: 'GRPC_STATUS_NUMBER' },
  'connection.requested_server_name': { command: 'REQUESTED_SERVER_NAME' },
  'connection.tls_version': { command: 'DOWNSTREAM_TLS_VERSION' },
  'connection.subject_peer_certificate': { command: 'DOWNSTREAM_PEER_SUBJECT' },
  'connection.uri_san_peer_certificate': { command: 'DOWNSTREAM_PEER_URI_SAN' },
  'connection.uri_san_local_certificate': { command: 'DOWNSTREAM_LOCAL_URI_SAN' },
  'connection.termination_details': { command: 'CONNECTION_TERMINATION_DETAILS' },
  'source.address': { command: 'DOWNSTREAM_REMOTE_ADDRESS' },
  'source.port': { command: 'DOWNSTREAM_REMOTE_PORT' },
  'destination.address': { command: 'DOWNSTREAM_LOCAL_ADDRESS' },
  'destination.port': { command: 'DOWNSTREAM_LOCAL_PORT' },
  'upstream.address': { command: 'UPSTREAM_HOST' },
  'upstream.port': { command: 'UPSTREAM_REMOTE_PORT' },
  'upstream.uri_san_peer_certificate': { command: 'UPSTREAM_PEER_URI_SAN' },
  'upstream.transport_failure_reason': { command: 'UPSTREAM_TRANSPORT_FAILURE_REASON' },
  'xds.cluster_name': { command: 'UPSTREAM_CLUSTER_RAW' },
  'xds.route_name': { command: 'ROUTE_NAME' },
};

/** By a formatter's command: the label of Istio's own that says the same of every request of a series, so that it is known of series alone. */
export const SERIES_LABELS: Readonly<Record<string, { label: string }>> = { RESPONSE_CODE: { label: 'response_code' }, GRPC_STATUS_NUMBER: { label: 'grpc_response_status' } };

/** For messages. */
export const TAG_ATTRIBUTES: readonly string[] = [...Object.keys(COMMANDS), "request.headers['…']", "response.headers['…']"];

const TERM = /^\s*(?:'([^'\\\n]*)'|"([^"\\\n]*)"|(?:string\(\s*)?(?:(request|response)\.headers\[(?:'([\w-]+)'|"([\w-]+)")\]|([a-z]+\.[a-z_]+))(?:\s*(\)))?)\s*(\+|$)/;

/** @returns undefined: this can't be said by formatters */
export function tagTerms(expression: string): TagTerm[] | undefined {
  const terms: TagTerm[] = [];
  let rest = expression;
  for (;;) {
    const found = TERM.exec(rest);
    if (!found) return undefined;
    const [whole, single, double, of, header = found[5], , attribute, closed, more] = found;
    const isCall = /^\s*string\(/.test(rest);
    if ((closed !== undefined) !== isCall) return undefined;
    const literal = single ?? double;
    if (literal !== undefined) terms.push({ text: literal });
    else if (header !== undefined) terms.push({ command: of === 'request' ? 'REQ' : 'RESP', param: header });
    else {
      const command = COMMANDS[attribute!];
      if (!command) return undefined;
      terms.push(command);
    }
    if (more !== '+') return terms;
    rest = rest.slice(whole.length);
  }
}
