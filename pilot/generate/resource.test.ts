import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { makePartedResource } from './resource.js';

test('makePartedResource: equal parts have an equal version, whoever made them; any other part makes another', () => {
  const version = (...parts: string[]): string => makePartedResource('80', RouteConfiguration, parts.map((part) => Buffer.from(part))).version;
  assert.equal(version('head', 'a', 'b'), version('head', 'a', 'b'));
  assert.equal(new Set([version('head', 'a', 'b'), version('head', 'b', 'a'), version('head', 'a'), version('head', 'a', 'c'), version('tail', 'a', 'b')]).size, 5);
});
