"""Behind gunicorn: what peer.py's servers answer."""
from peer import answer, pieces


def application(environ, start_response):
    headers = {name.removeprefix("HTTP_").replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    status, said, data, chunked = answer(environ["REQUEST_METHOD"], environ["RAW_URI"], headers, environ["wsgi.input"].read())
    # Without a length gunicorn sends chunks.
    start_response(f"{status} Said", said if data is None or chunked else [*said, ("content-length", str(len(data)))])
    return [] if data is None or environ["REQUEST_METHOD"] == "HEAD" else pieces(data)
