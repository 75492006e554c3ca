/* What HTTP readers have disagreed about; the fuzzer's dictionary. */
#pragma once

struct token {
	const char *text;
	size_t length;
};
#define T(t) { t, sizeof(t) - 1 }

static const struct token first_lines[] = {
	T("GET / HTTP/1.1\r\n"), T("HEAD /a HTTP/1.1\r\n"), T("POST /a/b HTTP/1.1\r\n"), T("PUT /a?b=c HTTP/1.1\r\n"), T("DELETE /a;b HTTP/1.1\r\n"),
	T("PATCH /:a@b HTTP/1.1\r\n"), T("OPTIONS /a HTTP/1.1\r\n"), T("OPTIONS * HTTP/1.1\r\n"), T("CONNECT a:80 HTTP/1.1\r\n"), T("TRACE / HTTP/1.1\r\n"),
	T("GET http://b/c HTTP/1.1\r\n"), T("GET //b/c HTTP/1.1\r\n"), T("GET /a/../b HTTP/1.1\r\n"), T("GET /a/.b HTTP/1.1\r\n"), T("GET /a%2fb HTTP/1.1\r\n"),
	T("GET /a?b=%20&c=%2F%2e%2e HTTP/1.1\r\n"), T("GET /a?b//../.. HTTP/1.1\r\n"), T("GET /a#b HTTP/1.1\r\n"), T("GET /a\\b HTTP/1.1\r\n"), T("GET /? HTTP/1.1\r\n"),
	T("GET /a?? HTTP/1.1\r\n"), T("GET /a;/../b HTTP/1.1\r\n"), T("GET /a/ HTTP/1.1\r\n"), T("GET /..;/ HTTP/1.1\r\n"), T("GET /a.. HTTP/1.1\r\n"), T("GET /$&'()*+,;=:@!~ HTTP/1.1\r\n"),
	T("GET / HTTP/1.0\r\n"), T("GET / HTTP/2.0\r\n"), T("GET / http/1.1\r\n"), T("GET  / HTTP/1.1\r\n"), T("GET\t/ HTTP/1.1\r\n"), T("GET / HTTP/1.1 \r\n"), T("GET /\r\n"),
	T("HTTP/1.1 200 OK\r\n"), T("HTTP/1.1 204 No Content\r\n"), T("HTTP/1.1 304 Not Modified\r\n"), T("HTTP/1.1 100 Continue\r\n"), T("HTTP/1.1 103 Early Hints\r\n"),
	T("HTTP/1.1 101 Switching Protocols\r\n"), T("HTTP/1.1 205 Reset Content\r\n"), T("HTTP/1.1 206 Partial Content\r\n"), T("HTTP/1.1 302 Found\r\n"), T("HTTP/1.1 404 \r\n"),
	T("HTTP/1.1 500 \xc3\xa4\r\n"), T("HTTP/1.1 599 x y\tz\r\n"), T("HTTP/1.1 200\r\n"), T("HTTP/1.0 200 OK\r\n"), T("HTTP/1.1  200 OK\r\n"), T("HTTP/1.1 099 OK\r\n"), T("HTTP/1.1 600 OK\r\n"),
};

static const struct token header_lines[] = {
	T("Host: b\r\n"), T("host:b:80\r\n"), T("Host: [::1]:80\r\n"), T("Host: a_b.c-d\r\n"), T("Host:\r\n"), T("Host : b\r\n"), T("Host: a, b\r\n"), T("Host: b\r\n c\r\n"), T("Host: ::\r\n"), T("Host: []\r\n"), T("Host: a:b:c\r\n"), T("Host: .\r\n"), T("Host: ]a[\r\n"), T("Host: a:\r\n"), T("Host: :80\r\n"), T("Host: a:99999\r\n"),
	T("Content-Length: 0\r\n"), T("Content-Length: 5\r\n"), T("content-length:10\r\n"), T("Content-Length: 0005\r\n"), T("Content-Length: +5\r\n"), T("Content-Length: -1\r\n"), T("Content-Length: 0x10\r\n"), T("Content-Length: 5, 5\r\n"),
	T("Content-Length: 5 \r\n"), T("Content-Length:\t5\t\r\n"), T("Content-Length : 5\r\n"), T("Content-Length:\r\n"), T("Content-Length: 5\r\n 6\r\n"), T("Content-Length: 5;\r\n"), T("Content_Length: 7\r\n"), T("Content-Length: 9999999999\r\n"), T("Content-Length: 18446744073709551617\r\n"),
	T("Transfer-Encoding: chunked\r\n"), T("transfer-encoding:CHUNKED\r\n"), T("Transfer-Encoding: xchunked\r\n"), T("Transfer-Encoding:  chunked\r\n"), T("Transfer-Encoding: chunked, identity\r\n"), T("Transfer-Encoding: identity\r\n"),
	T("Transfer-Encoding: chunked \r\n"), T("Transfer-Encoding:\tchunked\t\r\n"), T("Transfer-Encoding : chunked\r\n"), T("Transfer-Encoding: gzip, chunked\r\n"), T("Transfer-Encoding:\x0b" "chunked\r\n"), T("Transfer-Encoding: \"chunked\"\r\n"), T("Transfer-Encoding:\r\n chunked\r\n"), T("Transfer_Encoding: chunked\r\n"), T("Transfer-Encoding\r\n: chunked\r\n"), T("X: y\rTransfer-Encoding: chunked\r\n"), T("X: y\nTransfer-Encoding: chunked\r\n"), T("Transfer-Encoding: chunked\nX: y\r\n"),
	T("Connection: close\r\n"), T("Connection: keep-alive\r\n"), T("Connection: Close \r\n"), T("Connection: close, x\r\n"), T("Connection: upgrade\r\n"), T("Connection: content-length\r\n"), T("Connection:\r\n"), T("Keep-Alive: timeout=5\r\n"), T("Proxy-Connection: close\r\n"), T("Proxy-Connection: keep-alive\r\n"),
	T("Expect: 100-continue\r\n"), T("Upgrade: websocket\r\n"), T("Upgrade: h2c\r\n"), T("HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"), T("TE: trailers\r\n"), T("TE: gzip\r\n"), T("Trailer: x\r\n"), T("Early-Data: 1\r\n"), T("Via: 1.1 a\r\n"), T("Max-Forwards: 0\r\n"),
	T("x-p: a\r\n"), T("X-P:  b \t\r\n"), T("x-p:\r\n"), T("x-p: a,b\r\n"), T("x-p:a b\tc\r\n"), T("x_p: a\r\n"), T("x-p : a\r\n"), T(" x-p: a\r\n"), T("\tx-p: a\r\n"), T("x-p: a\r\n b\r\n"), T("x-p: \xc3\xa4\r\n"), T("x-p: a\x00" "b\r\n"), T("x-p: \"a\"\r\n"), T("x-p:\t\t\t\t\t\t\ta\r\n"), T("x-p: a       \r\n"), T("x-p\r\n"), T(": a\r\n"), T("-: a\r\n"), T("_: a\r\n"), T("0: a\r\n"),
	T("x-forwarded-for: 10.0.0.1\r\n"), T("x-forwarded-proto: https\r\n"), T("x-forwarded-proto: x\r\n"), T("x-forwarded-host: c\r\n"), T("x-forwarded-port: 1\r\n"), T("x-original-url: /c\r\n"), T("x-rewrite-url: /c\r\n"), T("x-http-method-override: PUT\r\n"), T("x-request-id: a\r\n"), T("x-envoy-original-path: /c\r\n"), T("Forwarded: host=c\r\n"),
	T("Cookie: a=b\r\n"), T("Cookie: c=d; e=f\r\n"), T("Content-Type: text/plain\r\n"), T("Accept: */*\r\n"), T("Date: x\r\n"), T("Server: x\r\n"), T("Set-Cookie: a=b\r\n"), T("Content-Encoding: gzip\r\n"), T("Content-Range: bytes 0-4/10\r\n"), T("grpc-status: 0\r\n"), T("Content-Location: /c\r\n"), T("Location: /c\r\n"), T("Scheme: x\r\n"), T("Protocol: websocket\r\n"), T("method: PUT\r\n"), T("path: /c\r\n"), T("authority: c\r\n"), T("status: 500\r\n"),
};

static const struct token pieces[] = {
	T("\r\n"), T("\n"), T("\r"), T("\r\n\r\n"), T("\n\n"), T("\r\r\n"), T("\n\r\n"), T("\r\n "), T("\r\n\t"), T("\0"), T(" "), T("\t"), T("\x0b"), T("\x0c"), T("\x7f"), T("\x80"), T("\xff"), T("\xc2\xa0"), T(":"), T(": "), T(" :"), T(","), T(";"), T("+"), T("-"), T("_"), T("0x"), T("%"), T("%00"), T("%2e"), T("%20"), T("//"), T("/."), T("/.."), T("/../"), T("\\"), T("#"), T("?"), T("*"), T("@"), T("["), T("]"), T("chunked"), T("HTTP/1.1"), T("GET / HTTP/1.1\r\nHost: c\r\n\r\n"), T("        "), T("\t\t\t\t\t\t\t\t"),
};

static const struct token bodies[] = {
	T("hello"), T("5\r\nhello\r\n0\r\n\r\n"), T("0\r\n\r\n"), T("A\r\n0123456789\r\n0\r\n\r\n"), T("00000005\r\nhello\r\n000\r\n\r\n"), T("5;a=b\r\nhello\r\n0\r\n\r\n"), T("5 \r\nhello\r\n0\r\n\r\n"), T("5\nhello\r\n0\r\n\r\n"), T("0x5\r\nhello\r\n0\r\n\r\n"), T("+5\r\nhello\r\n0\r\n\r\n"), T("5\r\nhello0\r\n\r\n"), T("5\r\nhello\r\n0\r\nX: y\r\n\r\n"), T("5\r\nhello\r\n0\r\nGET / HTTP/1.1\r\n\r\n"), T("1\r\na\r\n2\r\nbc\r\na\r\n0123456789\r\n0\r\n\r\n"), T("100000005\r\nhello\r\n0\r\n\r\n"), T("5\r\nhello\r\n0\n\n"), T("0\r\n\r\nGET /c HTTP/1.1\r\nHost: c\r\n\r\n"), T("GET /c HTTP/1.1\r\nHost: c\r\n\r\n"), T("HTTP/1.1 200 OK\r\n\r\n"), T("\r\n"), T("5\r\n\r\n\r\n\r\n\r\n0\r\n\r\n"),
};

static const char interesting[] = "\0\t\n\x0b\x0c\r !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\x7f\x80\xa0\xff" "09azAZ";
