// Server and client of net/http: a PUT is answered with the SHA-256 of its body in hex, a line feed and the body itself.
//
//	http server HOST:PORT
//	http client HOST:PORT FILE COUNT SIZE...
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
	"sync"
	"time"
)

func serve(address string) error {
	return http.ListenAndServe(address, http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil {
			http.Error(response, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(response, "%x\n", sha256.Sum256(body))
		response.Write(body)
	}))
}

func exchange(client *http.Client, address string, payload []byte) ([]byte, error) {
	request, err := http.NewRequest(http.MethodPut, "http://"+address+"/", bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

func ask(address, file string, count int, sizes []int) (map[string]map[string]int, error) {
	payload, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	// A connection for each request.
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	report := map[string]map[string]int{}
	for _, size := range sizes {
		table := map[string]int{}
		var all sync.WaitGroup
		var lock sync.Mutex
		for i := 0; i < count; i++ {
			all.Add(1)
			go func() {
				defer all.Done()
				received, err := exchange(client, address, payload[:size])
				if err != nil {
					received = []byte(err.Error())
				}
				lock.Lock()
				defer lock.Unlock()
				table[fmt.Sprintf("%x", sha256.Sum256(received))]++
			}()
		}
		all.Wait()
		report[strconv.Itoa(size)] = table
	}
	return report, nil
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	role, address := os.Args[1], os.Args[2]
	if role == "server" {
		log.Fatal(serve(address))
	}
	var sizes []int
	for _, text := range os.Args[5:] {
		sizes = append(sizes, number(text))
	}
	report, err := ask(address, os.Args[3], number(os.Args[4]), sizes)
	if err != nil {
		log.Fatal(err)
	}
	json.NewEncoder(os.Stdout).Encode(report)
}
