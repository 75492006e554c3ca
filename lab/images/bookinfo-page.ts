/** Bookinfo's product page: what the tasks of Istio's documentation look for in it (stars and their colour, the errors' words). */
import type { Fetched } from './bookinfo.js';

interface Review {
  reviewer: string;
  text: string;
  rating?: { stars?: number; color?: string; error?: string };
}

const escaped = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');

function stars({ rating }: Review): string {
  if (!rating) return '';
  if (rating.stars === undefined) return `<p><i>${escaped(rating.error ?? '')}</i></p>`;
  const icon = (kind: string): string => `<span class="glyphicon glyphicon-${kind}"></span>`;
  return `<font color="${rating.color}">${icon('star').repeat(rating.stars)}${icon('star-empty').repeat(Math.max(0, 5 - rating.stars))}</font>`;
}

export function productPage(user: string | undefined, details: Fetched, reviews: Fetched): string {
  const book = details.status === 200 ? Object.entries(details.body as object).map(([key, value]) => `<dt>${key}</dt><dd>${escaped(String(value))}</dd>`) : undefined;
  const { reviews: list, podname, error } = (reviews.body ?? {}) as { reviews?: Review[]; podname?: string; error?: string };
  return [
    '<!DOCTYPE html>',
    '<html><head><title>Simple Bookstore App</title></head><body>',
    user ? `<p>${escaped(user)} (<a href="logout">sign out</a>)</p>` : '<p><a href="login">Sign in</a></p>',
    '<h3>The Comedy of Errors</h3>',
    ...(book ? ['<h4>Book Details</h4><dl>', ...book, '</dl>'] : ['<h4>Error fetching product details!</h4>', '<p>Sorry, product details are currently unavailable for this book.</p>']),
    ...(reviews.status === 200 && list
      ? ['<h4>Book Reviews</h4>', ...list.map((review) => `<blockquote><p>${escaped(review.text)}</p><small>${review.reviewer}</small>${stars(review)}</blockquote>`), `<dl><dt>Reviews served by:</dt><u>${podname}</u></dl>`]
      : ['<h4>Error fetching product reviews!</h4>', `<p>${escaped(error ?? 'Sorry, product reviews are currently unavailable for this book.')}</p>`]),
    '</body></html>',
    '',
  ].join('\n');
}
