// The small application of ../src/lib.rs on Go's net/http. Build with:
//
//	go build -trimpath -ldflags "-s -w" -o /tmp/go-net-http main.go
package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: go-net-http ADDRESS")
	}
	routes := http.NewServeMux()
	routes.HandleFunc("/", okay)
	routes.HandleFunc("/echo", echo)
	routes.HandleFunc("/upload", upload)
	routes.HandleFunc("/download", download)
	server := &http.Server{Addr: os.Args[1], Handler: routes}

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	failed := make(chan error, 1)
	go func() {
		if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	}()
	select {
	case err := <-failed:
		log.Fatal(err)
	case <-signals:
	}
	deadline, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := server.Shutdown(deadline); err != nil {
		log.Fatal(err)
	}
}

func okay(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" {
		http.NotFound(w, r)
		return
	}
	io.WriteString(w, "okay")
}

// This version of Go discards the rest of a short body once the response begins, so the handler has
// to read such a body whole.
func echo(w http.ResponseWriter, r *http.Request) {
	var body io.Reader = r.Body
	if r.ContentLength >= 0 && r.ContentLength < 1<<20 {
		whole, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = bytes.NewReader(whole)
	}
	if r.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
	}
	io.CopyBuffer(w, body, make([]byte, 64*1024))
}

func upload(w http.ResponseWriter, r *http.Request) {
	piece := make([]byte, 64*1024)
	count := 0
	for {
		n, err := r.Body.Read(piece)
		count += n
		if err == io.EOF {
			break
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	io.WriteString(w, strconv.Itoa(count))
}

var fixed struct {
	once  sync.Once
	bytes []byte
}

func download(w http.ResponseWriter, r *http.Request) {
	fixed.once.Do(func() { fixed.bytes = bytes.Repeat([]byte("x"), 1<<20) })
	w.Header().Set("Content-Length", strconv.Itoa(len(fixed.bytes)))
	w.Write(fixed.bytes)
}
