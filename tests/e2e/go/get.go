// usage: get lookup HOST | get URL [4|6] | get -proxy URL: Go's own resolver and HTTP client, built
// without cgo. With 4 or 6 it connects by that family alone; -proxy obeys the proxy variables.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(words []string) error {
	if words[0] == "lookup" {
		found, err := net.DefaultResolver.LookupHost(context.Background(), words[1])
		for _, address := range found {
			fmt.Println(address)
		}
		return err
	}
	var proxy func(*http.Request) (*url.URL, error)
	if words[0] == "-proxy" {
		proxy = http.ProxyFromEnvironment
		words = words[1:]
	}
	family := ""
	if len(words) > 1 {
		family = words[1]
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	dial := func(ctx context.Context, _, address string) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp"+family, address)
	}
	transport := &http.Transport{Proxy: proxy, DialContext: dial, ForceAttemptHTTP2: true}
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	response, err := client.Get(words[0])
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return err
	}
	if response.StatusCode != 200 {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	return nil
}
