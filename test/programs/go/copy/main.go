// A TCP proxy as programs in Go are: io.Copy between two connections, which splices on Linux.
//
//	copy LISTEN TARGET
package main

import (
	"io"
	"log"
	"net"
	"os"
	"sync"
)

func pass(to, from *net.TCPConn) {
	io.Copy(to, from)
	to.CloseWrite()
}

func proxy(client *net.TCPConn, target string) {
	defer client.Close()
	server, err := net.Dial("tcp", target)
	if err != nil {
		log.Print(err)
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	both.Add(2)
	go func() { defer both.Done(); pass(server.(*net.TCPConn), client) }()
	go func() { defer both.Done(); pass(client, server.(*net.TCPConn)) }()
	both.Wait()
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go proxy(client.(*net.TCPConn), os.Args[2])
	}
}
