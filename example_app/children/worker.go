package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

type request struct {
	ID      string
	Payload struct {
		Task   string
		Args   json.RawMessage
		Kwargs json.RawMessage
	}
}

type reply struct {
	ID        string   `json:"id"`
	Status    string   `json:"status"`
	Result    any      `json:"result,omitempty"`
	Type      string   `json:"type,omitempty"`
	Message   string   `json:"message,omitempty"`
	Backtrace []string `json:"backtrace,omitempty"`
}

var tasks = map[string]func(args json.RawMessage) (any, error){
	"billing.charge": func(args json.RawMessage) (any, error) {
		var row [1]invoice
		if err := json.Unmarshal(args, &row); err != nil {
			return nil, err
		}
		return charge(row[0]), nil
	},
	"example.noisy": func(json.RawMessage) (any, error) {
		fmt.Println("fmt.Println goes to stderr")
		echo := exec.Command("echo", "and so does a subprocess")
		echo.Stdout = os.Stdout
		return "quiet", echo.Run()
	},
}

func answer(req request) (rep reply) {
	defer func() { // a panic ends its task, not the child
		if r := recover(); r != nil {
			rep = reply{Status: "error", Type: fmt.Sprintf("%T", r),
				Message: fmt.Sprint(r), Backtrace: backtrace()}
		}
		rep.ID = req.ID
	}()
	task, known := tasks[req.Payload.Task]
	if !known {
		return reply{Status: "error", Type: "UnknownTask",
			Message: "unknown task " + req.Payload.Task}
	}
	result, err := task(req.Payload.Args)
	if err != nil { // an error carries no stack in Go
		return reply{Status: "error", Type: fmt.Sprintf("%T", err), Message: err.Error()}
	}
	return reply{Status: "ok", Result: result}
}

func backtrace() (lines []string) {
	counters := make([]uintptr, 64)
	frames := runtime.CallersFrames(counters[:runtime.Callers(3, counters)])
	for {
		frame, more := frames.Next()
		if !strings.HasPrefix(frame.Function, "runtime.") {
			lines = append(lines, fmt.Sprintf("%s:%d %s", frame.File, frame.Line, frame.Function))
		}
		if !more {
			return lines
		}
	}
}

// takeStdout gives replies a descriptor of their own and turns stdout into stderr: no
// fmt.Println, of a package or of a subprocess, can come between the replies any more.
func takeStdout() (*os.File, error) {
	fd, err := syscall.Dup(1)
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fd)
	if err := syscall.Close(1); err != nil {
		return nil, err
	}
	_, err = syscall.Dup(2) // takes the lowest free descriptor: 1
	return os.NewFile(uintptr(fd), "replies"), err
}

func serve() error {
	out, err := takeStdout()
	if err != nil {
		return err
	}
	requests, replies := json.NewDecoder(os.Stdin), json.NewEncoder(out)
	for requests.More() {
		var req request
		if err := requests.Decode(&req); err != nil {
			return err
		}
		if err := replies.Encode(answer(req)); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
