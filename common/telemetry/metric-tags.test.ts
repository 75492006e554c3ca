import assert from 'node:assert/strict';
import { test } from 'node:test';
import { tagTerms } from './metric-tags.js';

test('tagTerms: texts, attributes, headers, string() of them, and sums', () => {
  assert.deepEqual(tagTerms("'a + b'"), [{ text: 'a + b' }]);
  assert.deepEqual(tagTerms('"x"'), [{ text: 'x' }]);
  assert.deepEqual(tagTerms('request.host'), [{ command: 'REQ', param: ':AUTHORITY' }]);
  assert.deepEqual(tagTerms(' string( destination.port ) '), [{ command: 'DOWNSTREAM_LOCAL_PORT' }]);
  assert.deepEqual(tagTerms("request.headers['x-user']"), [{ command: 'REQ', param: 'x-user' }]);
  assert.deepEqual(tagTerms('response.headers["x-user"]'), [{ command: 'RESP', param: 'x-user' }]);
  assert.deepEqual(tagTerms("request.method + ' ' + string(response.code)"), [{ command: 'REQ', param: ':METHOD' }, { text: ' ' }, { command: 'RESPONSE_CODE' }]);
});

test('tagTerms: what formatters can\'t say is undefined, however it is written', () => {
  for (const expression of [
    '', ' ', '+', "'a' +", 'request', 'request.nothing', 'nobody.host', "request.host == 'a'", 'request.host.size()', "'a", "'a\\'b'", 'string(request.host', 'request.host)', "request.headers['a b']", "request.headers['a%)b']",
    "string('a'", "has(request.host) ? 'a' : 'b'", "'a' 'b'", "filter_state['x']", 'toString', '__proto__.constructor',
  ]) assert.equal(tagTerms(expression), undefined, expression);
});

test('tagTerms: who may write a Telemetry holds nobody up by a long one', () => {
  const blanks = ' '.repeat(1_000_000);
  for (const expression of [`request.host${blanks}!`, `string(${blanks}request.host${blanks}!`, `string(request.host${blanks})${blanks}!`, `${blanks}!`, `'a'${blanks}!`]) assert.equal(tagTerms(expression), undefined);
  assert.deepEqual(tagTerms(`string(${blanks}request.host${blanks})${blanks}+ 'a'`), [{ command: 'REQ', param: ':AUTHORITY' }, { text: 'a' }]);
});
