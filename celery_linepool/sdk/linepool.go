// Package linepool serves Celery tasks to a celery-linepool worker.
//
//	linepool.Handle("billing.charge", charge)
//	log.Fatal(linepool.Run(64))
//
// Importing it turns stdout into stderr, for subprocesses as well. A panic is its task's
// error. What Go lets nobody survive loses the tasks that are running: os.Exit, a stack
// overflow, and a panic in a goroutine that a handler has started.
package linepool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
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
	ID       string
	Name     string
	Retries  int
	Deadline time.Time // zero if there is none; the child is killed then
	Meta     map[string]any

	request line
	cancel  context.CancelFunc
	replied bool
}

// Message is a task to publish. With OnSuccess it is sent only if this one succeeds.
type Message struct {
	Task                  string
	Args, Kwargs, Options any // a slice, and two maps or structs, or nil
	OnSuccess             bool
}

type line struct { // whatever the worker may say
	Op      string
	ID      json.RawMessage // goes back as it came
	Payload struct {
		Task   string
		Args   []json.RawMessage
		Kwargs json.RawMessage
		Meta   map[string]any
	}
	Error  string
	Seq    any
	TaskID string `json:"task_id"`
}

type fields map[string]any

type outcome fields

func (o outcome) Error() string { return fmt.Sprint(o["status"]) }

// Retry is what to return to run a task again, as long as it may be.
func Retry(after time.Duration, why string) error {
	return outcome{"status": "retry", "retry_after_secs": after.Seconds(), "message": why}
}

// Throttle is what to return to run a task again later, which uses up no retry.
func Throttle(after time.Duration) error {
	return outcome{"status": "throttled", "retry_after_secs": after.Seconds()}
}

// Reject is what to return to reject a task's message, or to have it delivered again.
func Reject(requeue bool) error { return outcome{"status": "rejected", "requeue": requeue} }

// Ignore is what to return to have nothing stored.
func Ignore() error { return outcome{"status": "ignored"} }

var (
	in, out  = takeChannel()
	maxLine  = number("LINEPOOL_MAX_LINE", 16<<20)
	protocol = number("LINEPOOL_PROTOCOL", 1)
	handlers = map[string]Handler{}

	mu      sync.Mutex // guards running, leaving, Task.replied, and writing
	running = map[string]*Task{}
	leaving bool
	tasks   sync.WaitGroup
	lastSeq int64
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

func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// Args decodes the positional arguments; a target whose argument is missing stays as it is.
func (t *Task) Args(targets ...any) error {
	args := t.request.Payload.Args
	if len(args) > len(targets) {
		return fmt.Errorf("%s takes %d arguments, not %d", t.Name, len(targets), len(args))
	}
	for i, arg := range args {
		if err := json.Unmarshal(arg, targets[i]); err != nil {
			return fmt.Errorf("argument %d: %w", i+1, err)
		}
	}
	return nil
}

// Kwargs decodes the keyword arguments, into a struct or a map.
func (t *Task) Kwargs(into any) error { return json.Unmarshal(t.request.Payload.Kwargs, into) }

// Progress stores how far the task is.
func (t *Task) Progress(meta any) error { return t.event(fields{"op": "progress", "meta": meta}) }

// Log writes to the worker's log; level is debug, info, warning, error or critical.
func (t *Task) Log(level, message string) error {
	if protocol < 2 {
		fmt.Fprintln(os.Stderr, level+": "+message)
	}
	return t.event(fields{"op": "log", "level": level, "message": message})
}

// Publish sends a task and returns its id.
func (t *Task) Publish(ctx context.Context, m Message) (string, error) {
	if protocol < 2 {
		return "", errors.New("publish needs a worker that speaks protocol 2")
	}
	when, answer := "now", make(chan line, 1)
	if m.OnSuccess {
		when = "success"
	}
	seq := float64(atomic.AddInt64(&lastSeq, 1)) // as it comes back
	answers.Store(seq, answer)
	defer answers.Delete(seq)
	if err := t.event(fields{"op": "publish", "seq": seq, "when": when, "task": m.Task,
		"args": m.Args, "kwargs": m.Kwargs, "options": m.Options}); err != nil {
		return "", err
	}
	select {
	case got := <-answer:
		if got.Error != "" {
			return "", errors.New("not published: " + got.Error)
		}
		return got.TaskID, nil
	case <-deaf:
		return "", errors.New("not published: the channel has ended")
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (t *Task) event(event fields) error {
	text, err := encode(event, t.request.ID)
	mu.Lock()
	defer mu.Unlock()
	if t.replied {
		return errors.New("the task has ended")
	}
	if err == nil && protocol >= 2 {
		write(text)
	}
	return err
}

func (t *Task) run(ctx context.Context) {
	reply := failure(errors.New("runtime.Goexit in a task"))
	defer func() {
		if thrown := recover(); thrown != nil {
			reply = failure(thrown, strings.Split(string(debug.Stack()), "\n")...)
		}
		t.cancel()
		t.finish(reply)
		tasks.Done()
	}()
	handler, known := handlers[t.Name]
	if !known {
		reply = failure(errors.New("unknown task " + t.Name))
		return
	}
	result, err := handler(ctx, t)
	var other outcome
	switch {
	case err == nil:
		reply = fields{"status": "ok", "result": result}
	case errors.As(err, &other):
		reply = fields(other)
	case errors.Is(err, context.Canceled) && ctx.Err() == context.Canceled:
		reply = fields{"status": "cancelled"}
	default: // an error carries no stack in Go
		reply = failure(err)
	}
}

func (t *Task) finish(reply fields) {
	text, err := encode(reply, t.request.ID)
	if err != nil { // no JSON, or too long
		text, _ = encode(failure(err), t.request.ID)
	}
	mu.Lock()
	defer mu.Unlock()
	t.replied = true
	delete(running, t.ID)
	write(text)
}

func failure(thrown any, backtrace ...string) fields {
	err, _ := thrown.(error)
	for err = errors.Unwrap(err); err != nil; err = errors.Unwrap(err) {
		backtrace = append(backtrace, fmt.Sprintf("caused by %T: %v", err, err))
	}
	return fields{"status": "error", "type": fmt.Sprintf("%T", thrown),
		"message": fmt.Sprint(thrown), "backtrace": append([]string{}, backtrace...)}
}

// encode adds the id to a copy: an error may be one variable, returned by many tasks.
func encode(said fields, id json.RawMessage) ([]byte, error) {
	whole := fields{}
	for name, value := range said {
		if value != nil {
			whole[name] = value
		}
	}
	if id != nil {
		whole["id"] = id
	}
	text, err := json.Marshal(whole)
	if len(text) > maxLine {
		err = fmt.Errorf("a line of %d bytes, the limit is %d", len(text), maxLine)
	}
	return append(text, '\n'), err
}

func write(text []byte) {
	if _, err := out.Write(text); err != nil {
		os.Exit(1) // nobody is left to reply to
	}
}

// Handle registers a handler by the task's name.
func Handle(name string, handler Handler) { handlers[name] = handler }

// Run serves tasks, so many at a time, until the worker or SIGTERM ends it.
func Run(inflight int) error {
	term, ended, names := make(chan os.Signal, 1), make(chan error, 1), []string{}
	signal.Notify(term, syscall.SIGTERM)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT) // subprocesses inherit an Ignore
	for name := range handlers {
		names = append(names, name)
	}
	hello, err := encode(fields{"op": "hello", "protocol": 2, "language": "go", "tasks": names,
		"inflight": inflight, "features": []string{"cancel", "ping", "stop"}}, nil)
	if err != nil {
		return err
	} else if protocol >= 2 {
		write(hello)
	}
	go func() { ended <- listen() }()
	select {
	case <-term: // and go on listening, to answers and cancels
	case err = <-ended:
	}
	mu.Lock()
	leaving = true
	mu.Unlock()
	tasks.Wait()
	return err
}

func listen() error {
	defer close(deaf)
	for lines := json.NewDecoder(in); ; {
		var got line
		if err := lines.Decode(&got); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		take(got)
	}
}

func take(got line) {
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
			answer.(chan line) <- got
		}
	case got.Op == "ping":
		pong, _ := encode(fields{"op": "pong", "seq": got.Seq}, nil)
		mu.Lock()
		defer mu.Unlock()
		write(pong)
	case got.Op == "stop":
		_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
	}
}

func start(task *Task) {
	var ctx context.Context
	ctx, task.cancel = context.WithCancel(context.Background())
	retries, _ := task.Meta["retries"].(float64)
	task.Retries = int(retries)
	if deadline, ok := task.Meta["deadline"].(float64); ok {
		task.Deadline = time.UnixMicro(int64(deadline * 1e6))
		ctx, task.cancel = context.WithDeadline(context.Background(), task.Deadline)
	}
	mu.Lock()
	defer mu.Unlock()
	if leaving { // it has not begun: another child may run it at once
		reply, _ := encode(fields(Throttle(0).(outcome)), task.request.ID)
		write(reply)
		return
	}
	running[task.ID] = task
	tasks.Add(1)
	go task.run(ctx)
}
