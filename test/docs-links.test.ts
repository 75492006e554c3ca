// The documentation leads where it says: files and headings that are there, and sources that name their version.
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { test } from 'node:test';
import { projectRoot } from '../common/paths.js';

const pages = [join(projectRoot, 'README.md'), ...readdirSync(join(projectRoot, 'docs'), { recursive: true }).map((name) => join(projectRoot, 'docs', String(name))).filter((name) => name.endsWith('.md'))];

/** What is code is no link. */
const prose = (text: string): string => text.replace(/^( {4}|\t).*$|^```[\s\S]*?^```$|`[^`\n]*`/gm, (code) => code.replace(/[[\]()<>]/g, ' '));

/** As GitHub makes them of headings: of one that is there twice the second ends in -1. */
function anchorsOf(page: string): Set<string> {
  const seen = new Map<string, number>();
  const anchors = new Set<string>();
  for (const [, heading] of readFileSync(page, 'utf8').replace(/^```[\s\S]*?^```$/gm, '').matchAll(/^#+ (.+)$/gm)) {
    const slug = heading!.replace(/\[([^\]]*)\]\([^)]*\)/g, '$1').toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-');
    const count = seen.get(slug) ?? 0;
    seen.set(slug, count + 1);
    anchors.add(count === 0 ? slug : `${slug}-${count}`);
  }
  return anchors;
}

test('links between pages lead to files and headings that are there', () => {
  const broken: string[] = [];
  for (const page of pages) {
    for (const [, target] of prose(readFileSync(page, 'utf8')).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^\w+:/.test(target!)) continue;
      const [path, anchor] = target!.split('#') as [string, string?];
      const file = path === '' ? page : resolve(dirname(page), path);
      if (!existsSync(file)) broken.push(`${relative(projectRoot, page)}: ${target}`);
      else if (anchor !== undefined && statSync(file).isFile() && file.endsWith('.md') && !anchorsOf(file).has(anchor)) broken.push(`${relative(projectRoot, page)}: ${target}: no such heading`);
    }
  }
  assert.deepEqual(broken, []);
});

const compare = readFileSync(join(projectRoot, 'docs', 'compare.md'), 'utf8');
const sources = new Map([...compare.matchAll(/^\[\^([\w.-]+)\]: (.+)$/gm)].map(([, name, text]) => [name!, text!]));

test('compare.md: every claim that names a source finds it, and no source stands for nothing', () => {
  const used = new Set([...compare.replace(/^\[\^[\w.-]+\]: .+$/gm, '').matchAll(/\[\^([\w.-]+)\]/g)].map(([, name]) => name!));
  assert.deepEqual([...used].sort(), [...sources.keys()].sort());
  assert.ok(used.size > 30);
});

test('compare.md: a source is one https address with its version: a commit, a release or a date', () => {
  for (const [name, text] of sources) {
    const links = [...text.matchAll(/<([^>]+)>/g)].map(([, link]) => new URL(link!));
    assert.equal(links.length, 1, name);
    assert.equal(links[0]!.protocol, 'https:', name);
    assert.ok(/\/blob\/[0-9a-f]{40}\//.test(links[0]!.pathname) || /\b\d+\.\d+(\.\d+)?\b|\d{4}-\d{2}-\d{2}/.test(text.replace(/<[^>]+>/, '')), `${name}: ${text}`);
  }
});

test("compare.md: each row has a cell for each of the meshes, and the other meshes' cells name a source or say what they stand on", () => {
  const table = compare.slice(compare.indexOf('## A request, step by step'), compare.indexOf('## Where the others'));
  const rows = table.split('\n').filter((line) => line.startsWith('| **')).map((line) => line.split('|').slice(1, -1).map((cell) => cell.trim()));
  assert.ok(rows.length >= 15);
  for (const cells of rows) {
    assert.equal(cells.length, 8, cells[0]);
    assert.ok(cells.slice(2).some((cell) => cell.includes('[^')), cells[0]);
    // A source is another mesh's; Underpass's own column leads to this repository.
    assert.ok(!cells[1]!.includes('[^'), cells[0]);
  }
});
