// Command postload posts JSON bodies with a number of clients and prints what came of it.
//
// The file has one body a line; they are sent in turn, each line again and again until the count is
// reached. Every client keeps its connections. Output: one JSON object.
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

type result struct {
	Count   int            `json:"count"`
	Seconds float64        `json:"seconds"`
	P50     float64        `json:"p50_ms"`
	P99     float64        `json:"p99_ms"`
	Max     float64        `json:"max_ms"`
	Status  map[string]int `json:"status"`
	Example string         `json:"example"`
	Failure string         `json:"failure"`
}

func main() {
	url := flag.String("url", "", "where to post")
	authority := flag.String("ca", "", "CA bundle")
	token := flag.String("token-file", "", "file with a bearer token")
	file := flag.String("bodies", "", "file with one JSON body a line")
	clients := flag.Int("clients", 16, "how many at once, each with a connection of its own")
	count := flag.Int("count", 1000, "how many requests in all")
	shared := flag.Bool("http2", false, "speak HTTP/2, all clients over one connection")
	flag.Parse()

	bodies := readLines(*file)
	header := http.Header{"Content-Type": {"application/json"}}
	if *token != "" {
		header.Set("Authorization", "Bearer "+strings.TrimSpace(string(read(*token))))
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(read(*authority)) {
		log.Fatalf("no certificate in %s", *authority)
	}
	transport := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:   *shared,
		MaxIdleConnsPerHost: *clients,
	}
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}

	times := make([]time.Duration, *count)
	out := result{Count: *count, Status: map[string]int{}}
	var next atomic.Int64
	var lock sync.Mutex
	var group sync.WaitGroup
	started := time.Now()
	for range *clients {
		group.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= *count {
					return
				}
				began := time.Now()
				status, answer := post(client, *url, header, bodies[i%len(bodies)])
				times[i] = time.Since(began)
				lock.Lock()
				out.Status[status]++
				if status[0] != '2' {
					out.Failure = string(answer[:min(len(answer), 500)])
				} else if out.Example == "" {
					out.Example = string(answer)
				}
				lock.Unlock()
			}
		})
	}
	group.Wait()
	out.Seconds = time.Since(started).Seconds()
	slices.Sort(times)
	out.P50, out.P99, out.Max = at(times, 0.50), at(times, 0.99), at(times, 1)
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		log.Fatal(err)
	}
}

func post(client *http.Client, url string, header http.Header, body []byte) (string, []byte) {
	request, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header = header.Clone()
	response, err := client.Do(request)
	if err != nil {
		return "error", []byte(err.Error())
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return "error", []byte(err.Error())
	}
	return fmt.Sprint(response.StatusCode), answer
}

// at returns a quantile of sorted times in milliseconds.
func at(times []time.Duration, quantile float64) float64 {
	index := min(int(quantile*float64(len(times))), len(times)-1)
	return float64(times[index].Microseconds()) / 1000
}

func readLines(path string) [][]byte {
	file, err := os.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	var lines [][]byte
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		lines = append(lines, slices.Clone(scanner.Bytes()))
	}
	if err := scanner.Err(); err != nil || len(lines) == 0 {
		log.Fatalf("no bodies in %s: %v", path, err)
	}
	return lines
}

func read(path string) []byte {
	content, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	return content
}
