import assert from 'node:assert/strict';
import { test } from 'node:test';
import { redact, redactText } from './config.js';

/** Stands in all that must go. */
const SECRET = 'hunter2';

test('redact: values of headers, variables and fields whose names say that they are secret, and of all headers for services that Envoy asks', () => {
  const given = {
    headers: [
      ...['authorization', 'Cookie', 'api-key', 'lightstep-access-token', 'x-vault-secret', 'X-Amz-Signature'].map((key) => ({ header: { key, value: SECRET } })),
      { header: { key: 'cookie', raw_value: SECRET } },
      { header: { key: 'x-kept', value: 'kept' } },
    ],
    environment: [{ name: 'DB_PASSWORD', value: SECRET }, { name: 'HOME', value: 'kept' }],
    tracer: { grpc_service: { initial_metadata: [{ key: 'x-honeycomb-team', value: SECRET }] } },
    otlp: { http_service: { http_uri: { uri: 'kept' }, request_headers_to_add: [{ header: { key: 'x-team', value: SECRET } }] } },
    redis: { downstream_auth_passwords: [{ inline_string: SECRET }], auth_password: { inline_string: SECRET } },
    api_keys: { credentials: [{ key: SECRET, client: 'kept' }] },
    token_bucket: { max_tokens: 10 }, metadata_key: { key: 'kept', path: [{ key: 'kept' }] },
  };
  const text = JSON.stringify(redact(given));
  assert.doesNotMatch(text, new RegExp(SECRET));
  assert.equal(text.split('kept').length - 1, JSON.stringify(given).split('kept').length - 1, text);
  assert.match(text, /"token_bucket":\{"max_tokens":10\}/);
});

test('redactText: headers as Envoy and curl write them, parameters and passwords of addresses; what is beside them stays', () => {
  for (const [given, expected] of [
    [`':path', '/x'\n'cookie', 'session=${SECRET}; a=b'\n'x-auth-token', "${SECRET}"\n':method', 'GET'`, `':path', '/x'\n'cookie', '[redacted]'\n'x-auth-token', "[redacted]"\n':method', 'GET'`],
    [`> Cookie: a=${SECRET}; b=c\n> Host: web`, '> Cookie: [redacted]\n> Host: web'],
    [`authorization: Digest username="a", nonce=${SECRET}`.replace(/"a"/, 'a'), 'authorization: [redacted]'],
    [`{"x-api-key":"a\\"${SECRET}","path":"/a?access_token=${SECRET}&page=2"}`, '{"x-api-key":"[redacted]","path":"/a?access_token=[redacted]&page=2"}'],
    [`GET /f?X-Amz-Signature=${SECRET}#part HTTP/1.1`, 'GET /f?X-Amz-Signature=[redacted]#part HTTP/1.1'],
    [`redis://user:${SECRET}@db:6379/0`, 'redis://user:[redacted]@db:6379/0'],
    [`Bearer ${SECRET}.${SECRET}`, 'Bearer [redacted]'],
    ['spiffe://cluster.local/ns/a/sa/b outbound|80||web.a.svc.cluster.local http://10.0.0.1:80/ a@b', 'spiffe://cluster.local/ns/a/sa/b outbound|80||web.a.svc.cluster.local http://10.0.0.1:80/ a@b'],
  ]) assert.equal(redactText(given!), expected);
  // Long words end soon.
  const long = `"${'token'.repeat(200_000)}`;
  assert.equal(redactText(long), long);
});
