// Command cdicheck reads CDI directories as container runtimes do, and injects devices.
//
// Input: JSON objects on stdin. Output: one JSON object and a newline for each. What a runtime would
// refuse is part of the output, not a failure of this program.
package main

import (
	"encoding/json"
	"log"
	"os"
	"path/filepath"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/specs-go"
)

// Directories have the lowest priority first. Devices are injected into OCI, in their order.
type question struct {
	Directories []string  `json:"directories"`
	Devices     []string  `json:"devices"`
	OCI         *oci.Spec `json:"oci"`
}

type file struct {
	Declared string `json:"declared"`
	Minimum  string `json:"minimum"`
	Error    string `json:"error"`
}

type answer struct {
	Files      map[string]file     `json:"files"`
	Resolvable []string            `json:"resolvable"`
	Errors     map[string][]string `json:"errors"`
	Unresolved []string            `json:"unresolved"`
	Error      string              `json:"error"`
	OCI        *oci.Spec           `json:"oci"`
}

func main() {
	input, output := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for input.More() {
		var asked question
		if err := input.Decode(&asked); err != nil {
			log.Fatalf("stdin: %v", err)
		}
		if err := output.Encode(judge(asked)); err != nil {
			log.Fatal(err)
		}
	}
}

func judge(asked question) answer {
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(asked.Directories...))
	if err != nil {
		log.Fatalf("%v: %v", asked.Directories, err)
	}
	result := answer{
		Files:      describeFiles(asked.Directories),
		Resolvable: cache.ListDevices(),
		Errors:     map[string][]string{},
		OCI:        asked.OCI,
	}
	for path, errs := range cache.GetErrors() {
		for _, e := range errs {
			result.Errors[path] = append(result.Errors[path], e.Error())
		}
	}
	if result.OCI == nil {
		result.OCI = &oci.Spec{}
	}
	if len(asked.Devices) > 0 {
		result.Unresolved, err = cache.InjectDevices(result.OCI, asked.Devices...)
		if err != nil {
			result.Error = err.Error()
		}
	}
	return result
}

func describeFiles(directories []string) map[string]file {
	found := map[string]file{}
	for priority, directory := range directories {
		for _, pattern := range []string{"*.json", "*.yaml"} {
			paths, err := filepath.Glob(filepath.Join(directory, pattern))
			if err != nil {
				log.Fatal(err)
			}
			for _, path := range paths {
				found[path] = describeFile(path, priority)
			}
		}
	}
	return found
}

func describeFile(path string, priority int) file {
	spec, err := cdi.ReadSpec(path, priority)
	if err != nil {
		return file{Error: err.Error()}
	}
	minimum, err := specs.MinimumRequiredVersion(spec.Spec)
	if err != nil {
		return file{Declared: spec.Version, Error: err.Error()}
	}
	return file{Declared: spec.Version, Minimum: minimum}
}
