package linepool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// The tasks that the worker's check asks for. Go cannot load code, so this file has to be
// compiled in; without the variable it does nothing.
func init() {
	if os.Getenv("LINEPOOL_CHECK") == "" {
		return
	}
	for name, handler := range map[string]Handler{
		"echo":    checkEcho,
		"sleep":   checkSleep,
		"fail":    checkFail,
		"exit":    checkExit,
		"end":     checkEnd,
		"print":   checkPrint,
		"stderr":  checkStderr,
		"big":     checkBig,
		"context": checkContext,
		"events":  checkEvents,
		"publish": checkPublish,
		"spawn":   checkSpawn,
	} {
		Handle("linepool.check."+name, handler)
	}
}

func checkEcho(_ context.Context, task *Task) (any, error) {
	payload := task.request.Payload
	return map[string]json.RawMessage{"args": payload.Args, "kwargs": payload.Kwargs}, nil
}

func checkSleep(ctx context.Context, task *Task) (any, error) {
	var seconds float64
	if err := task.Args(&seconds); err != nil {
		return nil, err
	}
	select {
	case <-time.After(time.Duration(seconds * float64(time.Second))):
		return seconds, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type checkError struct {
	message string
	cause   error
}

func (e *checkError) Error() string { return e.message }
func (e *checkError) Unwrap() error { return e.cause }

func checkFail(_ context.Context, task *Task) (any, error) {
	failed := &checkError{cause: errors.New("the cause")}
	if err := task.Args(&failed.message); err != nil {
		return nil, err
	}
	return nil, failed
}

// It ends the child: no Go program survives os.Exit.
func checkExit(_ context.Context, task *Task) (any, error) {
	var code int
	if err := task.Args(&code); err != nil {
		return nil, err
	}
	os.Exit(code)
	return nil, nil
}

func checkEnd(_ context.Context, task *Task) (any, error) {
	var status string
	var seconds float64
	if err := task.Args(&status, &seconds); err != nil {
		return nil, err
	}
	after := time.Duration(seconds * float64(time.Second))
	switch status {
	case "retry":
		return nil, Retry(after, "")
	case "throttled":
		return nil, Throttle(after)
	case "rejected":
		return nil, Reject(false)
	case "ignored":
		return nil, Ignore()
	}
	return nil, fmt.Errorf("no status of a task: %s", status)
}

func checkPrint(_ context.Context, task *Task) (any, error) {
	var text string
	if err := task.Args(&text); err != nil {
		return nil, err
	}
	fmt.Println(text)
	echo := exec.Command("echo", text)
	echo.Stdout = os.Stdout
	return nil, echo.Run()
}

func checkStderr(_ context.Context, task *Task) (any, error) {
	var bytes int
	if err := task.Args(&bytes); err != nil {
		return nil, err
	}
	_, err := os.Stderr.WriteString(strings.Repeat("x", bytes))
	return nil, err
}

func checkBig(_ context.Context, task *Task) (any, error) {
	var bytes int
	err := task.Args(&bytes)
	return strings.Repeat("x", bytes), err
}

func checkContext(ctx context.Context, task *Task) (any, error) {
	told := map[string]any{"id": task.ID, "retries": task.Retries, "deadline": nil}
	if deadline, ok := ctx.Deadline(); ok {
		told["deadline"] = float64(deadline.UnixMicro()) / 1e6
	}
	return told, nil
}

func checkEvents(_ context.Context, task *Task) (any, error) {
	var count int
	if err := task.Args(&count); err != nil {
		return nil, err
	}
	for n := 1; n <= count; n++ {
		if err := task.Progress(map[string]int{"step": n}); err != nil {
			return nil, err
		}
	}
	return count, task.Log("warning", "checked")
}

func checkPublish(_ context.Context, task *Task) (any, error) {
	message, when := Message{Args: []int{7}}, "now"
	if err := task.Args(&message.Task, &when); err != nil {
		return nil, err
	}
	message.OnSuccess = when == "success"
	return task.Publish(message)
}

func checkSpawn(context.Context, *Task) (any, error) {
	sleep := exec.Command("sleep", "30")
	err := sleep.Start()
	if err != nil {
		return nil, err
	}
	go func() { _ = sleep.Wait() }()
	return sleep.Process.Pid, nil
}
