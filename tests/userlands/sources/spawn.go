// SPDX-License-Identifier: Apache-2.0

// Goroutines and a process, from a program without the C library.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
)

func main() {
	var group sync.WaitGroup
	var mutex sync.Mutex
	sum := 0
	for number := 0; number < 1000; number++ {
		group.Add(1)
		go func(number int) {
			defer group.Done()
			mutex.Lock()
			defer mutex.Unlock()
			sum += number
		}(number)
	}
	group.Wait()
	said, err := exec.Command("echo", "from a process").Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("goroutines: %d, %s", sum, said)
}
