// A server on Go's net/http that stops in the usual way, for a comparison. It has the two routes
// that `smol-graceful check --work` asks for, stops at HUP, INT, TERM or QUIT, and gives requests
// in flight 30 s. The exit code is 1 if that was not enough, or if the server could not listen.
//
// Build with:
//
//	go build -o /tmp/net-http tests/peers/net-http/main.go
//
// It listens on -listen 127.0.0.1:8082, or, with -listen fd:0, on the socket with that descriptor.
package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const grace = 30 * time.Second

func main() {
	address := flag.String("listen", "127.0.0.1:8082", "host:port, or fd:N for an inherited socket")
	flag.Parse()

	// The signals are handled before the server listens.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)

	listener, err := listen(*address)
	if err != nil {
		log.Fatal(err)
	}
	log.Print("listening on ", listener.Addr())

	routes := http.NewServeMux()
	routes.HandleFunc("/work", work)
	routes.HandleFunc("/echo", echo)
	server := &http.Server{Handler: routes}

	failed := make(chan error, 1)
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	}()
	select {
	case err := <-failed:
		log.Fatal(err)
	case signal := <-signals:
		log.Print(signal, ": stopping")
	}

	deadline, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := server.Shutdown(deadline); err != nil {
		log.Fatal(err)
	}
	log.Print("stopped")
}

func listen(address string) (net.Listener, error) {
	if !strings.HasPrefix(address, "fd:") {
		return net.Listen("tcp", address)
	}
	fd, err := strconv.ParseUint(strings.TrimPrefix(address, "fd:"), 10, 16)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), address)
	defer file.Close()
	return net.FileListener(file)
}

// GET /work?for=20ms
func work(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		http.Error(w, "GET only", http.StatusMethodNotAllowed)
		return
	}
	if pause(w, r) {
		io.WriteString(w, "okay")
	}
}

// POST /echo?for=20ms
func echo(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "POST only", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if pause(w, r) {
		w.Write(body)
	}
}

// pause waits for the time in the request. It returns false if that time makes no sense.
func pause(w http.ResponseWriter, r *http.Request) bool {
	text := r.URL.Query().Get("for")
	if text == "" {
		return true
	}
	duration, err := time.ParseDuration(text)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	time.Sleep(duration)
	return true
}
