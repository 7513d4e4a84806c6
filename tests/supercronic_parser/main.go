// What supercronic's own parser makes of crontab lines, for tests/test_schedule.py.
//
// Arguments: a moment in RFC 3339 and a number of due times. Each line of stdin is a
// crontab of its own; each line of stdout is its answer, as one JSON object.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/aptible/supercronic/crontab"
	"github.com/sirupsen/logrus"
)

type answer struct {
	IsRead   bool     `json:"is_read"` // false: refused, or a panic
	Schedule string   `json:"schedule"`
	Command  string   `json:"command"`
	Due      []string `json:"due"`
}

func ask(line string, after time.Time, count int) (found answer) {
	defer func() {
		if recover() != nil {
			found = answer{}
		}
	}()
	parsed, err := crontab.ParseCrontab(strings.NewReader(line))
	if err != nil || len(parsed.Jobs) != 1 {
		return answer{}
	}
	job := parsed.Jobs[0]
	found = answer{IsRead: true, Schedule: job.Schedule, Command: job.Command}
	for range count {
		after = job.Expression.Next(after)
		if after.IsZero() {
			break
		}
		found.Due = append(found.Due, after.Format(time.RFC3339))
	}
	return found
}

func main() {
	logrus.SetOutput(io.Discard)
	after, err := time.Parse(time.RFC3339, os.Args[1])
	if err != nil {
		panic(err)
	}
	count, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	scanner := bufio.NewScanner(os.Stdin)
	for scanner.Scan() {
		text, err := json.Marshal(ask(scanner.Text(), after, count))
		if err != nil {
			panic(err)
		}
		fmt.Println(string(text))
	}
}
