// Package linepool serves Celery tasks to a celery-linepool worker.
//
//	linepool.Handle("billing.charge", charge)
//	linepool.Run(64)
//
// Needs Go 1.19 and nothing else; copy it, and check.go for the worker's check. Importing
// it turns stdout into stderr, for subprocesses as well. A panic is its task's error, but
// what Go lets nobody survive loses the tasks that are running: os.Exit, a stack overflow,
// and a panic in a goroutine that a handler has started.
package linepool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Handler is a task's code. Its context ends with a cancel and at the task's deadline.
type Handler func(ctx context.Context, task *Task) (any, error)

// Task is one request. Meta is all that the worker tells about it.
type Task struct {
	ID, Name string
	Retries  int
	Meta     map[string]any

	request request
	cancel  context.CancelFunc
	ended   bool
}

// Message is a task to publish. With OnSuccess it is sent only if this one succeeds.
type Message struct {
	Task                  string
	Args, Kwargs, Options any // a slice, and two maps or structs, or nil
	OnSuccess             bool
}

type request struct { // and whatever else the worker says
	Op, Error string
	ID        json.RawMessage // goes back as it came
	Seq       any
	TaskID    string `json:"task_id"`
	Payload   struct {
		Task         string
		Args, Kwargs json.RawMessage
		Meta         map[string]any
	}
}

// A line goes up. As an error it is what a handler returns to end in another way.
type line map[string]any

func (l line) Error() string { return fmt.Sprint("a task that ends as ", l["status"]) }

// Retry is what to return to run a task again, as long as it may be.
func Retry(after time.Duration, why string) error {
	return line{"status": "retry", "retry_after_secs": after.Seconds(), "message": why}
}

// Throttle is what to return to run a task again later, which uses up no retry.
func Throttle(after time.Duration) error {
	return line{"status": "throttled", "retry_after_secs": after.Seconds()}
}

// Reject is what to return to reject a task's message, or to have it delivered again.
func Reject(requeue bool) error { return line{"status": "rejected", "requeue": requeue} }

// Ignore is what to return to have nothing stored.
func Ignore() error { return line{"status": "ignored"} }

var (
	in, out           = takeChannel()
	maxLine, protocol = 16 << 20, 1
	handlers, names   = map[string]Handler{}, []string{}
	child             = &Task{} // writes what is of no task

	mu      sync.Mutex // guards the channel out, Task.ended, and the next three
	running = map[string]*Task{}
	fewer   = sync.NewCond(&mu)
	leaving bool
	lastSeq atomic.Int64
	answers sync.Map              // of channels, by seq
	deaf    = make(chan struct{}) // closed when no answer can come any more
)

func takeChannel() (*os.File, *os.File) {
	in, out := 3, 4
	if os.Getenv("LINEPOOL_CHANNEL") != "fd" {
		// Not dup2, which not every system has: what is opened takes the lowest number.
		in, _ = syscall.Dup(0)
		out, _ = syscall.Dup(1)
		_ = syscall.Close(0)
		_, _ = syscall.Open(os.DevNull, syscall.O_RDONLY, 0)
		_ = syscall.Close(1)
		_, _ = syscall.Dup(2)
	}
	syscall.CloseOnExec(in)
	syscall.CloseOnExec(out)
	return os.NewFile(uintptr(in), "requests"), os.NewFile(uintptr(out), "replies")
}

// Handle registers a handler by the task's name.
func Handle(name string, handler Handler) { handlers[name], names = handler, append(names, name) }

// Args decodes the positional arguments; a target whose argument is missing stays as it is.
func (t *Task) Args(targets ...any) error {
	got := targets // decoding fills what its elements point to, and adds what is left
	err := json.Unmarshal(t.request.Payload.Args, &got)
	if err == nil && len(got) > len(targets) {
		err = fmt.Errorf("%s takes %d arguments, not %d", t.Name, len(targets), len(got))
	}
	return err
}

// Kwargs decodes the keyword arguments, into a struct or a map.
func (t *Task) Kwargs(into any) error { return json.Unmarshal(t.request.Payload.Kwargs, into) }

// Progress stores how far the task is.
func (t *Task) Progress(meta any) error { return t.write(line{"op": "progress", "meta": meta}) }

// Log writes to the worker's log; level is debug, info, warning, error or critical.
func (t *Task) Log(level, message string) error {
	if protocol < 2 {
		fmt.Fprintln(os.Stderr, level+": "+message)
	}
	return t.write(line{"op": "log", "level": level, "message": message})
}

// Publish sends a task and returns its id.
func (t *Task) Publish(message Message) (string, error) {
	if protocol < 2 {
		return "", errors.New("not published: the worker does not speak protocol 2")
	}
	seq, answer := float64(lastSeq.Add(1)), make(chan request, 1) // it comes back as such
	answers.Store(seq, answer)
	when := map[bool]string{false: "now", true: "success"}[message.OnSuccess]
	if err := t.write(line{"op": "publish", "seq": seq, "when": when, "task": message.Task,
		"args": message.Args, "kwargs": message.Kwargs, "options": message.Options}); err != nil {
		return "", err
	}
	got := request{Error: "the channel has ended"}
	select {
	case got = <-answer:
	case <-deaf:
	}
	if got.Error != "" {
		return "", errors.New("not published: " + got.Error)
	}
	return got.TaskID, nil
}

func (t *Task) write(said line) error {
	if said["op"] != nil && protocol < 2 {
		return nil
	}
	whole := line{} // a copy: an error may be one variable, returned by many tasks
	for name, value := range said {
		if value != nil {
			whole[name] = value
		}
	}
	if t != child {
		whole["id"] = t.request.ID
	}
	text, err := json.Marshal(whole)
	if len(text) > maxLine {
		err = fmt.Errorf("a line of %d bytes, the limit is %d", len(text), maxLine)
	}
	mu.Lock()
	defer mu.Unlock()
	if err != nil {
		return err
	} else if t.ended {
		return errors.New("the task has ended")
	}
	if t.ended = said["op"] == nil; t.ended {
		delete(running, t.ID)
		fewer.Signal()
	}
	_, err = out.Write(append(text, '\n')) // if it fails, the channel in ends soon
	return err
}

// Run serves tasks, so many at a time, until the worker or SIGTERM ends it.
func Run(inflight int) {
	_, _ = fmt.Sscan(os.Getenv("LINEPOOL_MAX_LINE"), &maxLine)
	_, _ = fmt.Sscan(os.Getenv("LINEPOOL_PROTOCOL"), &protocol)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT) // subprocesses inherit an Ignore
	_ = child.write(line{"op": "hello", "protocol": 2, "language": "go", "tasks": names,
		"inflight": inflight, "features": []string{"cancel", "ping", "stop"}})
	go listen()
	select {
	case <-stop: // and go on listening, to answers and cancels
	case <-deaf:
	}
	mu.Lock() // for good: no line shall be cut short by the end
	leaving = true
	for len(running) > 0 {
		fewer.Wait()
	}
}

func listen() {
	defer close(deaf)
	for lines := json.NewDecoder(in); ; {
		var got request
		var odd *json.UnmarshalTypeError // of a field of something that we do not know
		if err := lines.Decode(&got); err != nil && !errors.As(err, &odd) {
			return
		}
		var id string
		_ = json.Unmarshal(got.ID, &id)
		mu.Lock()
		task := running[id]
		mu.Unlock()
		switch {
		case got.Op == "":
			start(&Task{ID: id, Name: got.Payload.Task, Meta: got.Payload.Meta, request: got})
		case got.Op == "cancel" && task != nil:
			task.cancel()
		case got.Op == "answer":
			if answer, waits := answers.LoadAndDelete(got.Seq); waits {
				answer.(chan request) <- got
			}
		case got.Op == "ping":
			_ = child.write(line{"op": "pong", "seq": got.Seq})
		case got.Op == "stop":
			_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
		}
	}
}

func start(t *Task) {
	var ctx context.Context
	ctx, t.cancel = context.WithCancel(context.Background())
	if deadline, ok := t.Meta["deadline"].(float64); ok {
		ctx, t.cancel = context.WithDeadline(ctx, time.UnixMicro(int64(deadline*1e6)))
	}
	retries, _ := t.Meta["retries"].(float64)
	t.Retries = int(retries)
	mu.Lock()
	defer mu.Unlock()
	running[t.ID] = t
	go t.run(ctx, leaving)
}

func (t *Task) run(ctx context.Context, late bool) {
	defer func() {
		if thrown := recover(); thrown != nil {
			_, stack, _ := strings.Cut(string(debug.Stack()), "\npanic(") // leaves out ours
			_ = t.write(failure(thrown, strings.Split("panic("+stack, "\n")...))
		}
		_ = t.write(failure(errors.New("no result"))) // only if nothing else was: Goexit
		t.cancel()
	}()
	var result any
	err := errors.New("unknown task " + t.Name)
	if late && protocol >= 2 { // another child may run it at once
		err = line{"status": "restart"}
	} else if late {
		err = Throttle(0)
	} else if handler, known := handlers[t.Name]; known {
		result, err = handler(ctx, t)
	}
	var reply line
	switch {
	case err == nil:
		reply = line{"status": "ok", "result": result}
	case errors.As(err, &reply):
	case errors.Is(err, context.Canceled) && ctx.Err() == context.Canceled:
		reply = line{"status": "cancelled"}
	default: // an error carries no stack in Go
		reply = failure(err)
	}
	if err := t.write(reply); err != nil { // no JSON, or too long
		_ = t.write(failure(err))
	}
}

func failure(thrown any, backtrace ...string) line {
	err, _ := thrown.(error)
	for err = errors.Unwrap(err); err != nil; err = errors.Unwrap(err) {
		backtrace = append(backtrace, fmt.Sprintf("caused by %T: %v", err, err))
	}
	return line{"status": "error", "type": fmt.Sprintf("%T", thrown),
		"message": fmt.Sprint(thrown), "backtrace": append([]string{}, backtrace...)}
}
