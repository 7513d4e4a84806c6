// When Kubernetes runs a schedule, for tests/test_export_times.py: its controller reads
// the five fields with this module.
//
// Arguments: a moment in RFC 3339 and a number of due times. Each line of stdin is a
// schedule; each line of stdout its due times, or what is wrong, as one JSON array.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/robfig/cron/v3"
)

func due(fields string, after time.Time, count int) []string {
	schedule, err := cron.ParseStandard("TZ=Etc/UTC " + fields)
	if err != nil {
		return []string{err.Error()}
	}
	found := []string{}
	for range count {
		// It looks five years ahead, and then says zero.
		if after = schedule.Next(after); after.IsZero() {
			break
		}
		found = append(found, after.Format(time.RFC3339))
	}
	return found
}

func main() {
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
		text, err := json.Marshal(due(scanner.Text(), after, count))
		if err != nil {
			panic(err)
		}
		fmt.Println(string(text))
	}
}
