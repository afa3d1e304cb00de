// Command constantpatch is an admission webhook that gives every object the same patch. It decodes
// nothing but the request's uid, so no webhook can answer sooner: it is what ours is measured
// against.
package main

import (
	"encoding/base64"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/http"
)

type review struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Request    *request  `json:"request,omitempty"`
	Response   *response `json:"response,omitempty"`
}

type request struct {
	UID string `json:"uid"`
}

type response struct {
	UID       string `json:"uid"`
	Allowed   bool   `json:"allowed"`
	PatchType string `json:"patchType"`
	Patch     string `json:"patch"`
}

func main() {
	listen := flag.String("listen", "127.0.0.1:8443", "address")
	certificate := flag.String("cert", "", "certificate file")
	key := flag.String("key", "", "key file")
	patch := flag.String("patch", "[]", "JSON patch")
	flag.Parse()
	encoded := base64.StdEncoding.EncodeToString([]byte(*patch))

	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
	})
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client is gone
		}
		var in review
		if err := json.Unmarshal(body, &in); err != nil || in.Request == nil {
			http.Error(w, "not an AdmissionReview", http.StatusBadRequest)
			return
		}
		answer := response{UID: in.Request.UID, Allowed: true, PatchType: "JSONPatch", Patch: encoded}
		out, err := json.Marshal(review{APIVersion: in.APIVersion, Kind: in.Kind, Response: &answer})
		if err != nil {
			log.Fatal(err)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(out) // the client may be gone
	})
	log.Fatal(http.ListenAndServeTLS(*listen, *certificate, *key, nil))
}
