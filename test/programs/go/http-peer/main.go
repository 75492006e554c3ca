// Go's net/http in the battery of the HTTP fast path, as test/http/programs/peer.ts has Node's: a server says in headers what it
// was asked and whether Envoy had it (which sets x-forwarded-proto); a client works through a plan, a line for each answer.
//
//	http-peer serve PORT
//	http-peer client BASE PLAN AT_ONCE KEEP
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	requestPieceBytes = 16_000
	answerPieceBytes  = 50_000
	// Beyond what any answer takes here: one that hangs.
	timeout = 15 * time.Second
)

var said = []string{"x-number", "x-path", "x-method", "x-body", "x-via"}

func repeated(unit string, size int) []byte {
	return []byte(strings.Repeat(unit, size/len(unit)+1)[:size])
}

func atMost(n, most int) int {
	if n > most {
		return most
	}
	return n
}

func hashOf(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data))[:16] }

func answer(response http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		http.Error(response, err.Error(), http.StatusBadRequest)
		return
	}
	query := request.URL.Query()
	status, _ := strconv.Atoi(query.Get("status"))
	size, _ := strconv.Atoi(query.Get("size"))
	number, path, via := request.Header.Get("x-number"), request.RequestURI, "fast"
	if request.Header.Get("x-forwarded-proto") != "" {
		via = "envoy"
	}
	for i, value := range []string{number, path, request.Method, fmt.Sprintf("%d %s", len(body), hashOf(body)), via} {
		response.Header().Set(said[i], value)
	}
	if status != http.StatusOK {
		response.WriteHeader(status)
		return
	}
	text := repeated(number+" "+path+" ", size)
	if query.Get("answer") != "chunked" {
		response.Header().Set("content-length", strconv.Itoa(size))
		response.Write(text)
		return
	}
	for at := 0; at < size; at += answerPieceBytes {
		response.Write(text[at:atMost(at+answerPieceBytes, size)])
		response.(http.Flusher).Flush()
	}
}

type planned struct {
	N       int
	Method  string
	Path    string
	Body    int
	Chunked bool
}

// In pieces, and without the length that a bytes.Reader would tell.
type pieces struct{ left []byte }

func (p *pieces) Read(into []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(into, p.left[:atMost(len(p.left), requestPieceBytes)])
	p.left = p.left[n:]
	return n, nil
}

func ask(client *http.Client, base string, item planned) []any {
	var body io.Reader
	if item.Method == http.MethodPost {
		text := repeated(fmt.Sprintf("body %d ", item.N), item.Body)
		if body = bytes.NewReader(text); item.Chunked {
			body = &pieces{text}
		}
	}
	request, err := http.NewRequest(item.Method, base+item.Path, body)
	if err != nil {
		return []any{item.N, err.Error()}
	}
	request.Header.Set("x-number", strconv.Itoa(item.N))
	response, err := client.Do(request)
	if err != nil {
		return []any{item.N, err.Error()}
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if err != nil {
		return []any{item.N, err.Error()}
	}
	report := []any{item.N, response.StatusCode}
	for _, name := range said {
		report = append(report, response.Header.Get(name))
	}
	return append(report, len(got), hashOf(got))
}

func work(base string, plan []planned, atOnce int, keep bool) {
	client := &http.Client{Timeout: timeout, Transport: &http.Transport{MaxConnsPerHost: atOnce, MaxIdleConnsPerHost: atOnce, DisableKeepAlives: !keep, DisableCompression: true}}
	items := make(chan planned)
	var all sync.WaitGroup
	var lock sync.Mutex
	out := json.NewEncoder(os.Stdout)
	for i := 0; i < atOnce; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for item := range items {
				report := ask(client, base, item)
				lock.Lock()
				out.Encode(report)
				lock.Unlock()
			}
		}()
	}
	for _, item := range plan {
		items <- item
	}
	close(items)
	all.Wait()
}

func main() {
	if os.Args[1] == "serve" {
		log.Fatal(http.ListenAndServe("0.0.0.0:"+os.Args[2], http.HandlerFunc(answer)))
	}
	text, err := os.ReadFile(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	var plan []planned
	if err := json.Unmarshal(text, &plan); err != nil {
		log.Fatal(err)
	}
	atOnce, err := strconv.Atoi(os.Args[4])
	if err != nil {
		log.Fatal(err)
	}
	work(os.Args[2], plan, atOnce, os.Args[5] == "keep")
}
