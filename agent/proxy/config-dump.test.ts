import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { ConfigDump, type DumpedResource } from './config-dump.js';

const PATHS = { name: 'name', version: 'active_state.version_info', content: 'active_state.listener' };

function read(text: string, every = text.length): readonly DumpedResource[] {
  const dump = new ConfigDump(PATHS);
  for (let at = 0; at < text.length; at += every) dump.write(text.slice(at, at + every));
  return dump.end();
}
const dumped = (...listeners: string[]): string => `{"configs": [${listeners.map((listener, index) => `{"@type": "x", "name": "n${index}", "active_state": {"version_info": "v${index}", "listener": ${listener}, "last_updated": "${Math.random()}"}}`).join(', ')}]}`;
const contents = (...listeners: string[]): (string | undefined)[] => read(dumped(...listeners)).map(({ content }) => content);

describe('ConfigDump', () => {
  it('tells name and version of each resource, and contents apart by a hash, whatever else is printed', () => {
    const [first, second, third] = read(`${dumped('{"a": 1}', '{"a": 2}', '{"a": 1}')}\n`);
    assert.deepEqual([first, second, third].map((each) => [each!.name, each!.version]), [['n0', 'v0'], ['n1', 'v1'], ['n2', 'v2']]);
    assert.match(first!.content!, /^[0-9a-f]{16}$/);
    assert.equal(first!.content, third!.content);
    assert.notEqual(first!.content, second!.content);
    assert.deepEqual(read('{}'), []);
    assert.deepEqual(read('{"configs": []}'), []);
    assert.deepEqual(read('{"configs": [{"name": "a \\"b\\" \\u00e9", "warming_state": {"version_info": "v"}}]}'), [{ name: 'a "b" é', version: undefined, content: undefined }]);
  });

  it('gives objects the same hash whatever the order of their keys, and lists another one in another order', () => {
    const [a, b, c, d] = contents('{"x": {"k": "1", "l": [1, 2, {"p": true, "q": null}]}, "y": "z"}', '{ "y":"z",\n "x":{"l":[1,2,{"q":null,"p":true}],"k":"1"} }', '{"x": {"k": "1", "l": [2, 1, {"p": true, "q": null}]}, "y": "z"}', '{"x": {"l": "1", "k": [1, 2, {"p": true, "q": null}]}, "y": "z"}');
    assert.equal(a, b);
    assert.notEqual(a, c);
    assert.notEqual(a, d);
  });

  it('tells contents apart that are nearly the same', () => {
    const all = ['{}', '[]', '""', '0', 'null', '{"a": ""}', '{"a": 0}', '{"a": "0"}', '{"a": []}', '{"a": [[]]}', '{"a": {}}', '{"a": [0]}', '{"a": [0, 0]}', '{"a": "b", "c": "d"}', '{"a": "d", "c": "b"}', '{"c": "b", "a": "d "}', '{"a": {"b": 1}, "c": {}}', '{"a": {}, "c": {"b": 1}}', '{"a": "\\"", "b": ","}', '{"a": "\\\\", "b": ","}', '{"a": ["x,y"]}', '{"a": ["x", "y"]}', '{"ab": ""}', '{"a": "b"}'];
    assert.equal(new Set(contents(...all)).size, all.length);
    const many = contents(...Array.from({ length: 20_000 }, (_, index) => `{"port": ${index}, "name": "outbound|${index}||s.ns.svc"}`));
    assert.equal(new Set(many).size, many.length);
  });

  it('reads the same however the text was cut, and says when it was not whole', () => {
    const text = dumped('{"a": "x\\\\\\"y", "b": [true, -1.5e3, {"c": "\\u20ac ü"}]}', '{"deep": {"deep": {"deep": {"name": "no", "version_info": "no"}}}}');
    const whole = read(text);
    for (const every of [1, 2, 3, 7, 64]) assert.deepEqual(read(text, every), whole);
    for (const at of [0, 5, 40, text.length - 1]) assert.throws(() => read(text.slice(0, at), 8), /ends in the middle/);
    assert.throws(() => read(']'), /no JSON/);
  });
});
